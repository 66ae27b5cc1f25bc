"""The proxy's stream to the leader: says hello, beats each second and at every change, and hands map changes to ownership.

The leader may be away as long as it likes: the stream is opened again with back-off and nothing is dropped meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.shard_map import Entry
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Transport
from stateful_proxy.entities import Entities
from stateful_proxy.ownership import Ownership

log = logging.getLogger(__name__)

JOIN = "/cloudstate_knative.v1.CoordinationService/Join"
BEAT = 1.0
"""Seconds between heartbeats."""
RETRY_FIRST, RETRY_LAST = 0.05, 2.0


class Coordinator:
    """Keeps this proxy a member. `on_map` is called after each map change."""

    def __init__(
        self, transport: Transport, target: str, hello: pb.Hello, ownership: Ownership, entities: Entities, on_map: Callable[[], None]
    ) -> None:
        self._transport, self._hello, self._ownership, self._entities, self._on_map = transport, hello, ownership, entities, on_map
        self._upstream = transport.connect(target)
        self._stream = 0
        self._retry = RETRY_FIRST
        self._beat_wanted = False
        self._members: dict[str, pb.Member] = {}
        self.joined = self.draining = False
        self.problem = f"leader at {target}: has not answered yet"

    def start(self) -> None:
        """Join, and beat from now on."""
        self._join()
        self._tick()

    def address_of(self, member: str) -> str:
        """Where another proxy takes calls from its peers; '' when it is not known."""
        found = self._members.get(member)
        return found.peer_address if found is not None else ""

    def _join(self) -> None:
        self._stream = self._transport.open(self._upstream, JOIN)
        self._transport.send(self._stream, pb.JoinRequest(hello=self._hello).SerializeToString())
        self.beat()

    def _tick(self) -> None:
        self.beat()
        self._transport.after(BEAT, self._tick)

    def beat_soon(self) -> None:
        """Beat once the present batch is done: something changed that the leader waits for."""
        if not self._beat_wanted:
            self._beat_wanted = True
            self._transport.after(0.0, self.beat)

    def beat(self) -> None:
        """One heartbeat."""
        self._beat_wanted = False
        load = self._entities.load(time.monotonic())
        beat = pb.Heartbeat(
            sent_at=time.monotonic_ns(),
            owned=[pb.OwnedShard(shard=s, epoch=t.epoch, load=load.get(s, 0.0)) for s, t in self._ownership.owned.items()],
            journal_ok=True,
            generation=self._ownership.generation,
            active_entities=self._entities.active,
            draining=self.draining,
        )
        self._transport.send(self._stream, pb.JoinRequest(heartbeat=beat).SerializeToString())

    def on_event(self, event: Event) -> bool:
        """Handle an event of the stream; False when it belongs to another."""
        kind, stream, data, detail = event
        if stream != self._stream or kind not in (api.STREAM_MESSAGE, api.STREAM_CLOSED):
            return False
        if kind == api.STREAM_CLOSED:
            self.problem = f"leader: the stream ended: {detail[1]}"
            self._transport.after(self._retry, self._join)
            self._retry = min(RETRY_LAST, self._retry * 2)
            return True
        message = pb.JoinResponse.FromString(data)
        if message.HasField("map"):
            self._retry = RETRY_FIRST
            self._apply(message.map)
        elif message.HasField("refusal"):
            self.problem = f"leader: this member is refused: {message.refusal.reason}"
            log.error("%s", self.problem)
        return True

    def _apply(self, update: pb.MapUpdate) -> None:
        self._members.update({member.member_id: member for member in update.members})
        entries = [(e.shard, Entry(e.owner, e.next, e.since, e.force_after_ms)) for e in update.entries]
        self.joined, self.problem = True, ""
        self._ownership.apply(update.generation, entries)
        self._on_map()
