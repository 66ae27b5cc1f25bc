"""The life of a control-plane process: an API client, work that every replica does, work that only the leader does, and an admin port.

`ended` is set once the process was told to stop and has given its lease back, or when work that every replica does has failed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from aiohttp import web

from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.leader import Election, StillWorking

log = logging.getLogger(__name__)

Work = Callable[[KubeClient], Awaitable[None]]


async def _nothing(_: KubeClient) -> None:
    """Wait until cancelled."""
    await asyncio.Event().wait()


@dataclass(frozen=True, slots=True)
class Role:
    """What a component does in its replicas."""

    name: str
    """Of the component and of its lease."""
    lead: Work
    """Runs while this replica leads; cancelled when it does not."""
    serve: Work = _nothing
    """Runs in every replica."""
    problem: Callable[[], str] = lambda: ""
    """Why this replica is not ready; '' when it is."""
    metrics: Callable[[], Iterable[str]] = lambda: ()
    """Lines in the Prometheus text form."""


class Replica:
    """One replica of a component."""

    def __init__(self, role: Role, namespace: str, identity: str, admin_port: int, kubeconfig: str = "") -> None:
        self.ended = threading.Event()
        self.failure = ""
        self._role, self._namespace, self._identity = role, namespace, identity
        self._admin_port, self._kubeconfig = admin_port, kubeconfig
        self._election: Election | None = None
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=role.name, daemon=True)

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
            log.exception("%s ends", self._role.name)
            self.failure = f"{self._role.name}: {error!r}"
        finally:
            self.ended.set()

    async def _main(self) -> None:
        client = await KubeClient.connect(self._kubeconfig)
        runner = web.AppRunner(self._admin(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, port=self._admin_port).start()
        election = self._election = Election(client, self._namespace, self._role.name, self._identity)
        tasks = [
            asyncio.ensure_future(election.run(lambda: self._role.lead(client))),
            asyncio.ensure_future(self._role.serve(client)),
            asyncio.ensure_future(self._stop.wait()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except StillWorking:
            tasks.clear()  # nothing is waited for: the loop must stop before another replica leads
            raise
        finally:
            if tasks:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await runner.cleanup()
                await client.close()

    def _admin(self) -> web.Application:
        async def alive(_: web.Request) -> web.Response:
            return web.Response(text="leading\n" if self._election is not None and self._election.leading else "following\n")

        async def ready(_: web.Request) -> web.Response:
            problem = self._role.problem()
            return web.Response(status=503 if problem else 200, text=f"{problem or 'ready'}\n")

        async def metrics(_: web.Request) -> web.Response:
            leading = int(self._election is not None and self._election.leading)
            head = f"# TYPE cloudstate_leading gauge\ncloudstate_leading {leading}\n"
            return web.Response(text=head + "".join(self._role.metrics()))

        app = web.Application()
        app.add_routes([web.get("/alive", alive), web.get("/ready", ready), web.get("/metrics", metrics)])
        return app
