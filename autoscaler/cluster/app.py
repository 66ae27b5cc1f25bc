"""Wires one autoscaler process: the election, the term of the leader, and the admin port. Followers are ready too: they wait to lead."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterable

from aiohttp import web

from autoscaler.cluster.leader import Leader
from autoscaler.cluster.naming import service_of
from autoscaler.cluster.settings import Settings
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.leader import Election

log = logging.getLogger(__name__)

LEASE = "cloudstate-autoscaler"


class Autoscaler:
    """One replica. `ended` is set once it was told to stop and has given its lease back."""

    def __init__(self, settings: Settings) -> None:
        self.ended = threading.Event()
        self.failure = ""
        self._settings = settings
        self._leader: Leader | None = None
        self._election: Election | None = None
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="autoscaler", daemon=True)

    def start(self) -> None:
        """Begin in a thread of its own."""
        self._thread.start()

    def drain(self) -> None:
        """From any thread: stop leading, give the lease back, end."""
        self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        """Wait for the end."""
        self._thread.join(10.0)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except Exception as error:
            log.exception("the autoscaler ends")
            self.failure = f"autoscaler: {error!r}"
        finally:
            self.ended.set()

    async def _main(self) -> None:
        client = await KubeClient.connect(self._settings.kubeconfig)
        runner = web.AppRunner(self._admin(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, port=self._settings.admin_port).start()
        self._election = Election(client, self._settings.namespace, LEASE, self._settings.pod)
        leading = asyncio.create_task(self._election.run(lambda: self._lead(client)))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({leading, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if leading.done():
                leading.result()
        finally:
            for task in (leading, stopped):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(leading, stopped, return_exceptions=True)
            await runner.cleanup()
            await client.close()

    async def _lead(self, client: KubeClient) -> None:
        self._leader = Leader(client, self._settings)
        try:
            await self._leader.run()
        finally:
            self._leader = None

    def _admin(self) -> web.Application:
        async def alive(_: web.Request) -> web.Response:
            return web.Response(text="leading\n" if self._leader is not None else "following\n")

        async def metrics(_: web.Request) -> web.Response:
            return web.Response(text="".join(_metrics(self._leader)))

        app = web.Application()
        app.add_routes([web.get("/alive", alive), web.get("/ready", alive), web.get("/metrics", metrics)])
        return app


def _metrics(leader: Leader | None) -> Iterable[str]:
    """Knative's own names and labels where one exists."""
    yield f"# TYPE cloudstate_autoscaler_leading gauge\ncloudstate_autoscaler_leading {int(leader is not None)}\n"
    revisions = list(leader.revisions.values()) if leader is not None else []
    figures = {
        "kn_revision_pods_desired": [float(r.pods.wanted) for r in revisions],
        "kn_revision_pods_count": [float(r.ready) for r in revisions],
        "kn_revision_panic_mode": [float(bool(d and d.in_panic)) for d in (r.loop.state.decision for r in revisions)],
        "kn_revision_concurrency_stable": [d.stable if d else 0.0 for d in (r.loop.state.decision for r in revisions)],
        "kn_revision_concurrency_panic": [d.panic if d else 0.0 for d in (r.loop.state.decision for r in revisions)],
    }
    for name, values in figures.items():
        yield f"# TYPE {name} gauge\n"
        for revision, value in zip(revisions, values, strict=True):
            _, _, service = service_of(revision.pa).partition("/")
            m = revision.pa.metadata
            yield f'{name}{{k8s_namespace_name="{m.namespace}",kn_service_name="{service}",kn_revision_name="{m.name}"}} {value:g}\n'
