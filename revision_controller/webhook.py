"""The admission server: HTTPS in, `admission` decides, answers out. It has no side effects, so that dry runs are safe."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from cloudstate_core.kube.api import KubeError, NotFound
from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.kinds import STATEFUL_STORE
from cloudstate_core.kube.objects import StatefulStore
from revision_controller import admission
from revision_controller.admission import Found, Refused, annotations_of
from revision_controller.certificates import Certificates
from revision_controller.config import Config

log = logging.getLogger(__name__)

LARGEST = 4 * 2**20
"""Bytes of a review; the API server's own limit for objects is lower."""
Request = Mapping[str, Any]
Decide = Callable[[Request], Awaitable[list[dict[str, Any]] | None]]


class Webhook:
    """Serves admission reviews. `tls` must have been given certificates before the port opens."""

    def __init__(self, client: KubeClient, stores: Cache[StatefulStore], config: Callable[[], Config]) -> None:
        self._client, self._stores, self._config = client, stores, config
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._runner: web.AppRunner | None = None
        self.reviews = self.refused = 0

    def use(self, certificates: Certificates) -> None:
        """Serve with these from the next connection on."""
        with tempfile.TemporaryDirectory() as folder:
            chain, key = pathlib.Path(folder, "tls.crt"), pathlib.Path(folder, "tls.key")
            chain.write_bytes(certificates.certificate)
            key.touch(0o600)
            key.write_bytes(certificates.key)
            self.tls.load_cert_chain(chain, key)

    async def start(self, host: str, port: int) -> None:
        """Open the port."""
        app = web.Application(client_max_size=LARGEST)
        app.add_routes(
            [web.post("/mutate-revision", self._handler(self._pair)), web.post("/validate-service", self._handler(self._check_service))]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=self.tls).start()

    async def stop(self) -> None:
        """Close the port."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _handler(self, decide: Decide) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            try:
                review = await request.json()
            except ValueError:
                return web.Response(status=400, text="the body is not an AdmissionReview\n")
            self.reviews += 1
            given = review.get("request") or {}
            uid = given.get("uid", "")
            try:
                return web.json_response(admission.allowed(uid, await decide(given)))
            except Refused as refusal:
                self.refused += 1
                return web.json_response(admission.refused(uid, refusal))

        return handle

    async def _pair(self, request: Request) -> list[dict[str, Any]] | None:
        revision = request.get("object") or {}
        namespace = request.get("namespace", "")
        revision.setdefault("metadata", {}).setdefault("namespace", namespace)
        name = annotations_of(revision).get("cloudstate.io/stateful-store", "") or self._config().default_store
        return admission.pair(revision, await self._find(namespace, name), self._config().proxy)

    async def _check_service(self, request: Request) -> None:
        admission.check_service(request.get("object") or {}, request.get("oldObject"))

    async def _find(self, namespace: str, name: str) -> Found:
        """A store by its name, from the cache, else asked for: it may just have been made."""
        held = self._stores.get(namespace, name) if name else None
        if held is None and name:
            with contextlib.suppress(NotFound):
                try:
                    held = await self._client.get(STATEFUL_STORE, namespace, name)
                except KubeError as error:
                    if isinstance(error, NotFound):
                        raise
                    raise Refused(f"StatefulStore {namespace}/{name}: cannot be looked up now ({error}); try again") from error
        return Found(name, held.spec if held is not None else None)
