"""Keeps the webhook's certificates: the leader makes them and tells the API server whom to trust; every replica reads them from the Secret."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cloudstate_core.kube.api import Kind, NotFound
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.kinds import MUTATING_WEBHOOK, SECRET, VALIDATING_WEBHOOK
from cloudstate_core.kube.objects import Object, Secret
from revision_controller.certificates import Certificates, due, make

log = logging.getLogger(__name__)

SECRET_NAME = "cloudstate-webhook-certs"
SERVICE = "cloudstate-webhook"
CONFIGURATION = "cloudstate-webhook"
WEBHOOKS: tuple[tuple[Kind[Object], tuple[str, ...]], ...] = (
    (MUTATING_WEBHOOK, ("pair.revisions.cloudstate.io",)),
    (VALIDATING_WEBHOOK, ("annotations.services.cloudstate.io",)),
)
MANAGER = "cloudstate-revision-controller"
LOOK_AGAIN = 3600.0


def held_in(secret: Secret | None) -> Certificates | None:
    """The certificates of a Secret; None when it has none."""
    try:
        parts = [base64.b64decode(secret.data[name]) for name in ("ca.crt", "tls.crt", "tls.key")] if secret is not None else []
    except (KeyError, binascii.Error):
        return None
    return Certificates(*parts) if parts and all(parts) else None


class Trust:
    """What the leader does about certificates."""

    def __init__(self, client: KubeClient, namespace: str, names: Sequence[str] = ()) -> None:
        self._client, self._namespace = client, namespace
        self._names = names or (f"{SERVICE}.{namespace}.svc", f"{SERVICE}.{namespace}.svc.cluster.local")

    async def ensure(self, _: str) -> float:
        """Make certificates when they are due, and have them trusted. KubeError when that cannot be written now."""
        try:
            held = held_in(await self._client.get(SECRET, self._namespace, SECRET_NAME))
        except NotFound:
            held = None
        if held is None or due(held, self._names, datetime.now(UTC)):
            held = make(self._names, datetime.now(UTC))
            data = {"ca.crt": held.ca, "tls.crt": held.certificate, "tls.key": held.key}
            body = {"type": "kubernetes.io/tls", "data": {name: base64.b64encode(value).decode() for name, value in data.items()}}
            await self._client.apply(SECRET, self._namespace, SECRET_NAME, body, MANAGER)
            log.warning("new certificates for %s", self._names[0])
        bundle = base64.b64encode(held.ca).decode()
        for kind, names in WEBHOOKS:
            webhooks: list[dict[str, Any]] = [{"name": name, "clientConfig": {"caBundle": bundle}} for name in names]
            await self._client.apply(kind, "", CONFIGURATION, {"webhooks": webhooks}, f"{MANAGER}-trust")
        return LOOK_AGAIN
