"""The admission server: HTTPS in, `admission` decides, answers out. It has no side effects, so that dry runs are safe."""

from __future__ import annotations

import asyncio
import logging
import pathlib
import ssl
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from cloudstate_core import annotations as rules
from cloudstate_core.kube.api import KubeError, NotFound
from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.kinds import STATEFUL_STORE
from cloudstate_core.kube.objects import StatefulStore
from revision_controller import admission
from revision_controller.admission import Answer, Found, Refused, annotations_of, store_name, template_of
from revision_controller.certificates import Certificates
from revision_controller.config import Config

log = logging.getLogger(__name__)

LARGEST = 8 * 2**20
"""Bytes of a review: the new and the old form of an object, each of which etcd takes up to 1.5 MiB of."""
LOOK_UP_LIMIT = 4.0
"""Seconds to ask for a store; the API server waits for 10 s for the whole answer."""
FINISH = 3.0
"""Seconds that an answer under way has when the port closes."""
Request = Mapping[str, Any]
Decide = Callable[[Request, dict[str, Any]], Awaitable[Answer]]


class Webhook:
    """Serves admission reviews. `use` must have been given certificates before the port opens."""

    def __init__(self, client: KubeClient, stores: Cache[StatefulStore], config: Callable[[], Config]) -> None:
        self._client, self._stores, self._config = client, stores, config
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._runner: web.AppRunner | None = None
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """(path, 'allowed' | 'patched' | 'refused' | 'failed') of reviews."""

    def use(self, certificates: Certificates) -> None:
        """Serve with these from the next connection on. ssl.SSLError when they do not belong together."""
        with tempfile.TemporaryDirectory() as folder:
            chain, key = pathlib.Path(folder, "tls.crt"), pathlib.Path(folder, "tls.key")
            chain.write_bytes(certificates.certificate)
            key.touch(0o600)
            key.write_bytes(certificates.key)
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key)  # a bad pair must not harm the one in use
            self._tls.load_cert_chain(chain, key)

    async def start(self, host: str, port: int) -> None:
        """Open the port."""
        app = web.Application(client_max_size=LARGEST)
        decisions: dict[str, Decide] = {
            "/mutate-revision": self._pair,
            "/validate-service": self._check_serving,
            "/validate-store": _check_store,
            "/validate-policy": _check_policy,
        }
        app.add_routes([web.post(path, self._handler(path, decide)) for path, decide in decisions.items()])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=FINISH)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=self._tls).start()

    async def stop(self) -> None:
        """Close the port, once what was asked is answered."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _handler(self, path: str, decide: Decide) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(http: web.Request) -> web.Response:
            outcome = "failed"
            try:
                request = request_of(await http.json())
            except ValueError as error:
                return web.Response(status=400, text=f"{path}: the body must be an AdmissionReview of admission.k8s.io/v1: {error}\n")
            try:
                answer = await decide(request, _object_of(request))
                outcome = "patched" if answer.patch else "allowed"
                return web.json_response(admission.allowed(request["uid"], answer))
            except Refused as refusal:
                outcome = "refused"
                return web.json_response(admission.refused(request["uid"], refusal))
            finally:
                self.outcomes[path, outcome] += 1

        return handle

    async def _pair(self, request: Request, revision: dict[str, Any]) -> Answer:
        return admission.pair(revision, await self._find(revision, annotations_of(revision)), self._config().proxy)

    async def _check_serving(self, request: Request, new: dict[str, Any]) -> Answer:
        """A Service or a Revision of Knative."""
        old = request.get("oldObject") or None
        if (new.get("metadata") or {}).get("deletionTimestamp"):
            return Answer()  # what is on its way out must be able to go, whatever the rules are now
        if (request.get("kind") or {}).get("kind") == "Revision":
            return admission.check_revision(new, old)
        annotations = annotations_of(template_of(new))
        found = None
        if rules.enabled(annotations) and not rules.errors(annotations):
            found = await self._find(new, annotations)
        return admission.check_service(new, old, found)

    async def _find(self, owner: Mapping[str, Any], annotations: Mapping[str, str]) -> Found:
        """The store that some annotations choose: from the cache, else asked for, since it may just have been made."""
        namespace, name = owner["metadata"]["namespace"], store_name(annotations, self._config().default_store)
        held = self._stores.get(namespace, name) if name else None
        if held is None and name and not rules.errors({rules.STORE: name}):
            try:
                async with asyncio.timeout(LOOK_UP_LIMIT):
                    held = await self._client.get(STATEFUL_STORE, namespace, name)
            except NotFound:
                pass
            except (KubeError, TimeoutError) as error:
                raise Refused(f"StatefulStore {namespace}/{name}: cannot be looked up now ({error!r}); try again") from error
        return Found(name, held.spec if held is not None else None)


async def _check_store(_: Request, store: dict[str, Any]) -> Answer:
    return admission.check_store(store)


async def _check_policy(_: Request, policy: dict[str, Any]) -> Answer:
    return admission.check_policy(policy)


def request_of(review: Any) -> Request:
    """The request of an AdmissionReview. ValueError when it is something else."""
    if not isinstance(review, dict) or review.get("kind") != "AdmissionReview":
        raise ValueError("it is of another kind")
    if review.get("apiVersion") != "admission.k8s.io/v1":
        raise ValueError(f"its apiVersion is {review.get('apiVersion')!r}")
    request = review.get("request")
    if not isinstance(request, dict) or not request.get("uid") or not isinstance(request.get("object"), dict):
        raise ValueError("it has no request with uid and object")
    return request


def _object_of(request: Request) -> dict[str, Any]:
    """The object under review, with the namespace that the request names."""
    found: dict[str, Any] = request["object"]
    metadata = found.get("metadata") or {}
    found["metadata"] = metadata
    if not metadata.get("namespace"):
        metadata["namespace"] = request.get("namespace", "")
    return found
