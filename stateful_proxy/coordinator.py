"""The proxy's stream to the leader: says hello, beats each second and at every change, and hands map changes to ownership.

The leader may be away as long as it likes: the stream is opened again with back-off and nothing is dropped meanwhile. Each time on a new
connection, since another may lead now behind the same name, and one to a machine that went without a word stays up for a quarter of an hour.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from google.protobuf.message import DecodeError

from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.shard_map import Entry
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Transport
from stateful_proxy.entities import Entities
from stateful_proxy.journal_probe import JournalProbe
from stateful_proxy.ownership import Ownership
from stateful_proxy.peers import Peers

log = logging.getLogger(__name__)

JOIN = "/cloudstate_knative.v1.CoordinationService/Join"
BEAT = 1.0
"""Seconds between heartbeats."""
RETRY_FIRST, RETRY_LAST = 0.05, 2.0
SILENCE_LIMIT = 5.0
"""Seconds without an acknowledgement after which the stream is taken for dead and opened again."""


class Coordinator:
    """Keeps this proxy a member. `on_map` is called after each map change.

    `concurrency` tells the commands at the function that concern no owned entity, on average since it was asked last.
    """

    def __init__(
        self,
        transport: Transport,
        target: str,
        hello: pb.Hello,
        ownership: Ownership,
        entities: Entities,
        concurrency: Callable[[float], float],
        peers: Peers,
        probe: JournalProbe,
        on_map: Callable[[], None],
    ) -> None:
        self._transport, self._hello, self._on_map = transport, hello, on_map
        self._ownership, self._entities, self._peers, self._probe = ownership, entities, peers, probe
        self._other_concurrency = concurrency
        self._target = target
        self._upstream = self._stream = 0
        self._retry = RETRY_FIRST
        self._heard = 0.0
        self._beat_wanted = False
        self._load: dict[int, float] = {}
        self._concurrency = 0.0
        self.joined = self.draining = False
        self.problem = f"leader at {target}: has not answered yet"

    def start(self) -> None:
        """Join; `tick` is to be called each BEAT from now on."""
        self._join()

    def _join(self) -> None:
        self._heard = time.monotonic()
        if self._upstream:
            self._transport.disconnect(self._upstream)
        self._upstream = self._transport.connect(self._target)
        self._stream = self._transport.open(self._upstream, JOIN)
        self._transport.send(self._stream, pb.JoinRequest(hello=self._hello).SerializeToString())
        self.beat()

    def tick(self, now: float) -> None:
        """Look at load and journal, and beat; give a silent stream up."""
        self._load = self._entities.load(now)
        self._concurrency = self._entities.function_concurrency + self._other_concurrency(now)
        self._probe.ask(now)
        if self._stream and now - self._heard >= SILENCE_LIMIT:
            self._heard = now
            self._transport.reset(self._stream)
            return
        self.beat()

    def beat_soon(self) -> None:
        """Beat once the present batch is done: something changed that the leader waits for."""
        if not self._beat_wanted:
            self._beat_wanted = True
            self._transport.after(0.0, self.beat)

    def beat(self) -> None:
        """One heartbeat."""
        self._beat_wanted = False
        if self._stream:
            self._transport.send(self._stream, pb.JoinRequest(heartbeat=self._heartbeat()).SerializeToString())

    def _heartbeat(self) -> pb.Heartbeat:
        load = self._load
        return pb.Heartbeat(
            sent_at=time.monotonic_ns(),
            owned=[pb.OwnedShard(shard=s, epoch=t.epoch, load=load.get(s, 0.0)) for s, t in self._ownership.owned.items()],
            function_concurrency=self._concurrency,
            journal_ok=self._probe.ok,
            generation=self._ownership.generation,
            active_entities=self._entities.active,
            draining=self.draining,
        )

    def on_event(self, event: Event) -> bool:
        """Handle an event of the stream; False when it belongs to another."""
        kind, stream, data, detail = event
        if stream != self._stream or kind not in (api.STREAM_MESSAGE, api.STREAM_CLOSED):
            return False
        if kind == api.STREAM_CLOSED:
            self._closed(detail[1])
            return True
        self._heard = time.monotonic()
        try:
            message = pb.JoinResponse.FromString(data)
        except DecodeError:
            log.error("leader at %s: sent a message that does not parse; joining again", self._target)
            self._transport.reset(stream)
            return True
        if message.HasField("map"):
            self._retry = RETRY_FIRST
            self._apply(message.map)
        elif message.HasField("refusal"):
            self.problem = f"leader at {self._target}: this member is refused: {message.refusal.reason}"
            log.error("%s", self.problem)
        return True

    def _closed(self, text: str) -> None:
        if not self.joined and "refused" not in self.problem:
            self.problem = f"leader at {self._target}: the stream ended: {text}"
        self._stream = 0
        self._transport.after(self._retry, self._join)
        self._retry = min(RETRY_LAST, self._retry * 2)

    def _apply(self, update: pb.MapUpdate) -> None:
        self._peers.update(update.members)
        count = self._ownership.shard_count
        entries = [(e.shard, Entry(e.owner, e.next, e.since, e.force_after_ms)) for e in update.entries if e.shard < count]
        self.joined, self.problem = True, ""
        self._ownership.apply(update.generation, entries)
        self._on_map()
