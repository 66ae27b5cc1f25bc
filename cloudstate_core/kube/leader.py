"""One leader among replicas, by a Lease of coordination.k8s.io.

The leader stops its work before anybody else could begin: work is cancelled when the lease has not been renewed for `RENEW_WITHIN` seconds
counted from the moment before the last good renewal was sent, has `STOP_WITHIN` seconds to end, and a follower waits `DURATION` seconds
(longer than both) after it last saw the lease change. Both count on their own monotonic clock: wall clocks may differ or jump.

Two ends of that promise: a process that was stopped (SIGSTOP, a paused machine) learns only once it runs again that its time is over; and
a replica that starts anew after somebody has deleted the Lease leads at once, while the old leader learns of it within `RETRY` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from cloudstate_core.kube.api import Conflict, KubeError, NotFound
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.kinds import LEASE
from cloudstate_core.kube.objects import Lease, timestamp

log = logging.getLogger(__name__)

DURATION = 15.0
RENEW_WITHIN = 10.0
STOP_WITHIN = 4.0
RETRY = 2.0
RELEASE_WITHIN = 2.0


class StillWorking(RuntimeError):
    """Work goes on although it was cancelled and its time is over: only the end of the process can stop it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A lease as a follower last saw it change: its version, and when on the follower's own clock."""

    version: str
    at: float


def may_take(lease: Lease, identity: str, seen: Seen, now: float) -> bool:
    """True when the lease is ours, free, or has not changed for its whole duration."""
    holder = lease.spec.holder_identity or ""
    return holder in ("", identity) or now - seen.at >= (lease.spec.lease_duration_seconds or DURATION)


class Election:
    """Takes part in one election as `identity` (unique among replicas)."""

    def __init__(self, client: KubeClient, namespace: str, name: str, identity: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.leading = False
        self._client, self._namespace, self._name, self._identity, self._clock = client, namespace, name, identity, clock
        self._seen: Seen | None = None
        self._last: Lease | None = None

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Lead and `work` whenever possible, until cancelled; then the lease is given back. An exception of the work is raised.

        StillWorking, with the lease kept, when the work does not end in time: the process must end before the lease does.
        """
        try:
            while True:
                renewed = await self._acquire()
                log.warning("%s leads %s/%s", self._identity, self._namespace, self._name)
                self.leading = True
                try:
                    await self._lead(work, renewed)
                finally:
                    self.leading = False
                log.warning("%s leads %s/%s no longer", self._identity, self._namespace, self._name)
                await asyncio.sleep(RETRY)
        except StillWorking:
            raise
        except (Exception, asyncio.CancelledError):
            with contextlib.suppress(KubeError, TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(RELEASE_WITHIN):
                    await self._release()
            raise

    async def _acquire(self) -> float:
        """Wait until the lease is ours; when it was, on the clock."""
        while True:
            began = self._clock()
            try:
                async with asyncio.timeout(RENEW_WITHIN):
                    if await self._try():
                        return began
            except (KubeError, TimeoutError) as error:
                log.info("lease %s/%s: %r", self._namespace, self._name, error)
            await asyncio.sleep(RETRY)

    async def _lead(self, work: Callable[[], Awaitable[None]], renewed: float) -> None:
        """Work and renew; returns once the lease may be lost and the work has ended."""
        if self._clock() - renewed >= RENEW_WITHIN:
            return
        task = asyncio.ensure_future(work())
        try:
            while (left := renewed + RENEW_WITHIN - self._clock()) > 0:
                await asyncio.wait({task}, timeout=min(RETRY, left))
                if task.done():
                    task.result()
                    return
                began = self._clock()
                try:
                    async with asyncio.timeout(renewed + RENEW_WITHIN - began):
                        if not await self._try():
                            return
                    renewed = began
                except (KubeError, TimeoutError) as error:
                    log.warning("lease %s/%s is not renewed: %r", self._namespace, self._name, error)
        finally:
            await self._end(task, max(self._clock(), renewed + RENEW_WITHIN) + STOP_WITHIN)

    async def _end(self, task: asyncio.Future[None], deadline: float) -> None:
        """End the work, also when told to end again meanwhile: until then the lease must not be given back."""
        task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while not task.done() and (left := deadline - self._clock()) > 0:
            try:
                await asyncio.wait({task}, timeout=left)
            except asyncio.CancelledError as error:
                cancelled = error
        if not task.done():
            raise StillWorking(f"the leader's work for {self._namespace}/{self._name} does not end")
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.info("the leader's work for %s/%s ended: %r", self._namespace, self._name, failure)
        if cancelled is not None:
            raise cancelled

    async def _try(self) -> bool:
        """Take or renew the lease; False when somebody else holds it."""
        try:
            lease = await self._client.get(LEASE, self._namespace, self._name)
        except NotFound:
            if self._seen is not None and self._last is not None and not may_take(self._last, self._identity, self._seen, self._clock()):
                return False  # somebody deleted it: its holder may work on until its time is over
            with contextlib.suppress(Conflict):
                await self._client.create(LEASE, self._namespace, self._body(None))
                return True
            return False
        if self._seen is None or self._seen.version != lease.metadata.resource_version:
            self._seen, self._last = Seen(lease.metadata.resource_version, self._clock()), lease
        if not may_take(lease, self._identity, self._seen, self._clock()):
            return False
        try:
            await self._client.replace(LEASE, self._namespace, self._name, self._body(lease))
        except Conflict:
            return False
        return True

    async def _release(self) -> None:
        """Give the lease back, so that nobody needs to wait for its end."""
        lease = await self._client.get(LEASE, self._namespace, self._name)
        if lease.spec.holder_identity == self._identity:
            await self._client.replace(LEASE, self._namespace, self._name, self._body(lease, holder=""))

    def _body(self, old: Lease | None, holder: str | None = None) -> dict[str, object]:
        holder = self._identity if holder is None else holder
        now = timestamp(datetime.now(UTC), "microseconds")
        same = old is not None and old.spec.holder_identity == holder
        metadata: dict[str, object] = {"name": self._name}
        if old is not None:
            metadata["resourceVersion"] = old.metadata.resource_version
        transitions = (old.spec.lease_transitions or 0) if old is not None else -1
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": int(DURATION),
            "renewTime": now,
            "acquireTime": (old.spec.acquire_time or now) if old is not None and same else now,
            "leaseTransitions": transitions if same or not holder else transitions + 1,
        }
        return {"metadata": metadata, "spec": spec}
