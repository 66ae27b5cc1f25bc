"""Leases in memory as elections see them, through lines that delay, lose and break; time is the running loop's."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from cloudstate_core.kube.api import Body, Conflict, Kind, KubeError, NotFound
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.objects import Lease


@dataclass
class Line:
    """The way between one replica and the API server."""

    delay: float = 0.0
    """Seconds that a call takes each way."""
    down: bool = False
    """Nothing gets through, and nobody says so."""
    error: KubeError | None = None
    lost: float = 0.0
    """Share of messages, each way, that never arrive."""
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    async def cross(self) -> None:
        """One message one way."""
        if self.error is not None:
            raise self.error
        await asyncio.sleep(self.chance.uniform(0, 2) * self.delay)
        if self.down or self.chance.random() < self.lost:
            await asyncio.sleep(30)
            raise KubeError(0, "Connection", "timed out")


class LeaseStore:
    """One lease, with the API server's rules for versions."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.version = 0
        self.written: list[float] = []
        """When it was written, as the store saw it."""

    @property
    def holder(self) -> str:
        return (self.lease.spec.holder_identity or "") if self.lease else ""

    def client(self, line: Line) -> KubeClient:
        return cast(KubeClient, _Client(self, line))

    def delete(self) -> None:
        self.lease = None

    def write(self, body: Body) -> Lease:
        self.version += 1
        self.written.append(asyncio.get_running_loop().time())
        metadata = {**body["metadata"], "resourceVersion": str(self.version)}
        self.lease = msgspec.convert({**body, "metadata": metadata}, type=Lease)
        return self.lease


class _Client:
    """The part of a client that an election uses."""

    def __init__(self, store: LeaseStore, line: Line) -> None:
        self.store, self.line = store, line

    async def get(self, kind: Kind[Any], namespace: str, name: str) -> Lease:
        await self.line.cross()
        found = self.store.lease
        await self.line.cross()
        if found is None:
            raise NotFound(404, "NotFound", "no lease")
        return found

    async def create(self, kind: Kind[Any], namespace: str, body: Body) -> Lease:
        await self.line.cross()
        made = self.store.write(body) if self.store.lease is None else None
        await self.line.cross()
        if made is None:
            raise Conflict(409, "AlreadyExists", "it is there")
        return made

    async def replace(self, kind: Kind[Any], namespace: str, name: str, body: Body) -> Lease:
        await self.line.cross()
        found = self.store.lease
        fits = found is not None and found.metadata.resource_version == body["metadata"]["resourceVersion"]
        made = self.store.write(body) if fits else None
        await self.line.cross()
        if made is None:
            raise Conflict(409, "Conflict", "it changed")
        return made
