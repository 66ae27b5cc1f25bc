"""The leader's keeping of certificates: nothing that people do to them goes unseen, whenever they do it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from cloudstate_core.kube.api import Body, Gone, Kind, NotFound
from cloudstate_core.kube.kinds import SECRET
from revision_controller.trust import CONFIGURATION, CONFIGURATIONS, SECRET_NAME, Trust

NAMESPACE = "cloudstate-system"
PATIENCE = 60.0
TURNS = 1000
"""Turns of the loop in which everything that can be done without the answer that is held back is done."""


class Cluster:
    """Stands where a `KubeClient` stands: every call is answered in the same turn."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], Any] = {}
        self.news = asyncio.Event()
        for kind in CONFIGURATIONS:
            self.write(kind, CONFIGURATION, {"webhooks": [{"name": "one", "clientConfig": {"caBundle": ""}}]})

    def write(self, kind: Kind[Any], name: str, body: Body) -> Any:
        body = {**body, "metadata": {"name": name, "namespace": NAMESPACE if kind is SECRET else "", "resourceVersion": str(len(self.held))}}
        self.held[kind.plural, name] = msgspec.convert(body, kind.model)
        self.news.set()
        return self.held[kind.plural, name]

    async def get(self, kind: Kind[Any], namespace: str, name: str) -> Any:
        if (kind.plural, name) not in self.held:
            raise NotFound(404, "NotFound", f"{kind.plural} {name} not found")
        return self.held[kind.plural, name]

    async def apply(self, kind: Kind[Any], namespace: str, name: str, body: Body, manager: str) -> Any:
        return self.write(kind, name, body)

    async def list(self, kind: Kind[Any], namespace: str = "", labels: str = "", fields: str = "") -> tuple[list[Any], str]:
        return [item for (plural, _), item in self.held.items() if plural == kind.plural], "1"

    async def watch(self, kind: Kind[Any], version: str, *selection: str) -> AsyncIterator[tuple[str, Any]]:
        await asyncio.Event().wait()
        yield "never", None

    async def until_whole(self) -> None:
        """Wait for certificates that every webhook is trusted by."""
        async with asyncio.timeout(PATIENCE):
            while not self.whole:
                self.news.clear()
                await self.news.wait()

    @property
    def whole(self) -> bool:
        secret = self.held.get((SECRET.plural, SECRET_NAME))
        found = {webhook.client_config.ca_bundle for kind in CONFIGURATIONS for webhook in self.held[kind.plural, CONFIGURATION].webhooks}
        return secret is not None and found == {secret.data["ca.crt"]}


@contextlib.asynccontextmanager
async def led(cluster: Cluster) -> AsyncIterator[Trust]:
    trust = Trust(cluster, NAMESPACE, settle=0.0)  # type: ignore[arg-type]
    running = asyncio.ensure_future(trust.run())
    try:
        yield trust
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_certificates_are_made_and_trusted() -> None:
    cluster = Cluster()
    async with led(cluster):
        await cluster.until_whole()


class Meddling(Cluster):
    """One list takes long; before it is read, somebody deletes the Secret or replaces a configuration."""

    def __init__(self, kind: Kind[Any]) -> None:
        super().__init__()
        self.kind, self.meddled = kind, asyncio.Event()

    async def list(self, kind: Kind[Any], namespace: str = "", labels: str = "", fields: str = "") -> tuple[list[Any], str]:
        if kind is self.kind:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if kind is SECRET:
                del self.held[SECRET.plural, SECRET_NAME]
            else:
                self.write(kind, CONFIGURATION, {"webhooks": [{"name": "one", "clientConfig": {"caBundle": ""}}]})
            self.meddled.set()
        return await super().list(kind, namespace, labels, fields)


@pytest.mark.parametrize("kind", [SECRET, *CONFIGURATIONS], ids=lambda kind: kind.plural)
async def test_what_happens_before_a_new_leader_knows_of_it_is_mended(kind: Kind[Any]) -> None:
    cluster = Meddling(kind)
    await Trust(cluster, NAMESPACE, settle=0.0).ensure(CONFIGURATION)  # type: ignore[arg-type]
    assert cluster.whole
    async with led(cluster):
        await cluster.meddled.wait()
        await cluster.until_whole()


class Cut(Cluster):
    """The watch of the Secret is too old once there is one, and somebody has deleted that before the next list."""

    def __init__(self) -> None:
        super().__init__()
        self.meddled, self.watches = asyncio.Event(), 0

    async def apply(self, kind: Kind[Any], namespace: str, name: str, body: Body, manager: str) -> Any:
        written = self.write(kind, name, body)
        if kind is SECRET and not self.meddled.is_set():
            del self.held[SECRET.plural, SECRET_NAME]
            self.meddled.set()
        return written

    async def watch(self, kind: Kind[Any], version: str, *selection: str) -> AsyncIterator[tuple[str, Any]]:
        self.watches += kind is SECRET
        if kind is SECRET and self.watches == 1:
            await self.meddled.wait()
            raise Gone(410, "Expired", "too old resource version")
        async for change in super().watch(kind, version, *selection):
            yield change


async def test_what_is_made_and_deleted_between_two_lists_is_made_again() -> None:
    cluster = Cut()
    async with led(cluster):
        await cluster.until_whole()
