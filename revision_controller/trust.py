"""Keeps the webhook's certificates: the leader makes them and tells the API server whom to trust; every replica reads them from the Secret.

Nobody is refused during a rotation: the API server trusts the new CA beside the old one before any replica serves with the new certificate.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cloudstate_core.kube.api import NotFound
from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.controller import Controller
from cloudstate_core.kube.kinds import MUTATING_WEBHOOK, SECRET, VALIDATING_WEBHOOK
from cloudstate_core.kube.objects import Secret, WebhookConfiguration
from revision_controller.certificates import Certificates, due, make, trusted

log = logging.getLogger(__name__)

SECRET_NAME = "cloudstate-webhook-certs"
SERVICE = "cloudstate-webhook"
CONFIGURATION = "cloudstate-webhook"
CONFIGURATIONS = (MUTATING_WEBHOOK, VALIDATING_WEBHOOK)
MANAGER = "cloudstate-revision-controller"
LOOK_AGAIN = 3600.0
SETTLE = 5.0
"""Seconds until every API server has seen a change of whom to trust."""


def held_in(secret: Secret | None) -> Certificates | None:
    """The certificates of a Secret; None when it has none."""
    try:
        parts = [base64.b64decode(secret.data[name]) for name in ("ca.crt", "tls.crt", "tls.key")] if secret is not None else []
    except (KeyError, binascii.Error):
        return None
    return Certificates(*parts) if parts and all(parts) else None


def untrusting(configuration: WebhookConfiguration, bundle: str) -> list[dict[str, Any]]:
    """What to change in a configuration so that each of its webhooks is trusted by `bundle` (base64); empty when nothing."""
    if all(webhook.client_config.ca_bundle == bundle for webhook in configuration.webhooks):
        return []
    return [{"name": webhook.name, "clientConfig": {"caBundle": bundle}} for webhook in configuration.webhooks]


class Trust:
    """What the leader does about certificates. `run` it; `controller` counts its looks."""

    def __init__(self, client: KubeClient, namespace: str, names: Sequence[str] = (), settle: float = SETTLE) -> None:
        self.controller = Controller("certificates", self.ensure, workers=1)
        self._client, self._namespace, self._settle = client, namespace, settle
        self._names = names or (f"{SERVICE}.{namespace}.svc", f"{SERVICE}.{namespace}.svc.cluster.local")

    async def run(self) -> None:
        """Until cancelled: what people delete, or apply anew without whom to trust, is mended at once.

        The first look waits for the lists, as what happens between a look and the list after it is told by no watch.
        """
        secret = Cache(self._client, SECRET, self._namespace, fields=f"metadata.name={SECRET_NAME}")
        caches: list[Cache[Any]] = [secret, *(Cache(self._client, kind, fields=f"metadata.name={CONFIGURATION}") for kind in CONFIGURATIONS)]
        async with asyncio.TaskGroup() as group:
            for cache in caches:
                cache.listen(lambda before, after: self.controller.queue.add(CONFIGURATION))
                cache.listen_to_lists(lambda: self.controller.queue.add(CONFIGURATION))
                group.create_task(cache.run())
            for cache in caches:
                await cache.synced.wait()
            group.create_task(self.controller.run())

    async def ensure(self, _: str) -> float:
        """Make certificates when they are due, and have them trusted; seconds until the next look. KubeError when that cannot be written now."""
        now = datetime.now(UTC)
        held = await self._held()
        if held is None or due(held, self._names, now):
            held = await self._renew(held, now)
        await self._trust(held.ca)
        return LOOK_AGAIN

    async def _held(self) -> Certificates | None:
        try:
            return held_in(await self._client.get(SECRET, self._namespace, SECRET_NAME))
        except NotFound:
            return None

    async def _renew(self, held: Certificates | None, now: datetime) -> Certificates:
        """New certificates, trusted first when there are old ones in use."""
        new = make(self._names, now)
        new = Certificates(trusted(new, held, now), new.certificate, new.key)
        if held is not None:
            await self._trust(new.ca)
            await asyncio.sleep(self._settle)
        data = {"ca.crt": new.ca, "tls.crt": new.certificate, "tls.key": new.key}
        body = {"type": "kubernetes.io/tls", "data": {name: base64.b64encode(value).decode() for name, value in data.items()}}
        await self._client.apply(SECRET, self._namespace, SECRET_NAME, body, MANAGER)
        log.warning("new certificates for %s", self._names[0])
        return new

    async def _trust(self, ca: bytes) -> None:
        """Write whom to trust into the webhook configurations. NotFound when one is not there (yet)."""
        bundle = base64.b64encode(ca).decode()
        for kind in CONFIGURATIONS:
            webhooks = untrusting(await self._client.get(kind, "", CONFIGURATION), bundle)
            if webhooks:
                await self._client.apply(kind, "", CONFIGURATION, {"webhooks": webhooks}, f"{MANAGER}-trust")
