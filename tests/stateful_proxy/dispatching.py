"""A dispatch in surroundings that record, for tests of what becomes of calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cloudstate_core.entity_key import MalformedMessage
from cloudstate_core.journal.api import Token
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2
from cloudstate_core.transport import api
from stateful_proxy.absence import Absence
from stateful_proxy.callers import Callers
from stateful_proxy.commands import Commands
from stateful_proxy.dispatch import Dispatch
from stateful_proxy.entity import Command
from stateful_proxy.eventing.cloud_events import CloudEvent
from stateful_proxy.eventing.publication import Publications
from stateful_proxy.eventing.subscriptions import Subscription
from stateful_proxy.health import Health
from stateful_proxy.invocation import Invocation
from stateful_proxy.metadata import Chosen
from stateful_proxy.peers import Peers
from stateful_proxy.service import ACTION, EVENT_SOURCED, MethodInfo
from stateful_proxy.transcoding.rules import Route

SHARDS = 16
PATH = "/test.Counter/Add"
METHOD = MethodInfo(PATH, "test.Counter", "Add", "counter", EVENT_SOURCED, "test.Amount", "test.Sum", (((1,), 9),), "test.Amount.id", None)
STREAMED = replace(METHOD, path="/test.Adder/All", service="test.Adder", entity_type=ACTION, key_fields=(), client_streaming=True, owned=False)
TOKEN = Token(3, b"nonce")


class Surroundings:
    """Transport, model, ownership and entities in one recorder."""

    def __init__(self, routes: Sequence[Route] = ()) -> None:
        self.routes = routes
        self.ended: dict[int, tuple[int, str, list[api.Header]]] = {}
        self.replies: dict[int, list[bytes]] = {}
        self.forwards: list[tuple[int, int, list[api.Header]]] = []
        self.connected: list[str] = []
        self.disconnected: list[int] = []
        self.sent: list[tuple[str, bytes]] = []
        self.headed: list[list[api.Header]] = []
        self.resets: list[int] = []
        self.admission: Any = TOKEN
        self.waiting: dict[int, Callable[[], None]] = {}
        self.full = False
        self.left: set[int] = set()
        """Calls whose callers went."""
        self.commands: list[tuple[Command, int, Token]] = []
        self.reroute: Callable[[Command], bool] = lambda command: False
        self.seals: list[tuple[str, int, int, int]] = []
        self.begun: list[tuple[bytes, bool, bool]] = []
        self.methods = {PATH: METHOD, STREAMED.path: STREAMED}
        self.services = ["test.Counter"]
        self.shard_count, self.generation = SHARDS, 9

        self.timers: list[tuple[float, Callable[[], None]]] = []

    # Transport
    def after(self, delay: float, callback: Callable[[], None]) -> int:
        self.timers.append((delay, callback))
        return len(self.timers)

    def fire(self) -> float:
        [(delay, callback)] = self.timers
        self.timers.clear()
        callback()
        return delay

    def finish(self, call: int, status: int, message: str = "", trailers: Sequence[api.Header] = ()) -> None:
        assert call not in self.ended
        self.ended[call] = (int(status), message, list(trailers))

    def reply(self, call: int, message: bytes, headers: Sequence[api.Header] = ()) -> None:
        self.send_message(call, message)
        self.finish(call, 0)

    def send_message(self, call: int, message: bytes, headers: Sequence[api.Header] = ()) -> None:
        self.replies.setdefault(call, []).append(message)

    def backlog(self, call: int) -> int:
        return 0

    def headers(self, call: int) -> list[api.Header]:
        return []

    def forward(self, call: int, upstream: int, headers: Sequence[api.Header] = ()) -> None:
        self.forwards.append((call, upstream, list(headers)))

    def connect(self, target: str) -> int:
        self.connected.append(target)
        return len(self.connected)

    def disconnect(self, upstream: int) -> None:
        self.disconnected.append(upstream)

    def open(self, upstream: int, path: str, headers: Sequence[api.Header] = (), timeout: float | None = None) -> int:
        self.sent.append((path, b""))
        self.headed.append(list(headers))
        return len(self.sent)

    def reset(self, stream: int) -> None:
        self.resets.append(stream)

    def send(self, stream: int, message: bytes) -> None:
        self.sent[stream - 1] = (self.sent[stream - 1][0], message)

    def half_close(self, stream: int) -> None:
        pass

    # Model
    def key(self, method: MethodInfo, payload: bytes) -> str:
        if payload == b"\xff":
            raise MalformedMessage("ends early")
        return payload.decode()

    # Ownership
    def admit(self, shard: int) -> Any:
        return self.admission

    def when_ready(self, shard: int, call: int, retry: Callable[[], None]) -> bool:
        if not self.full:
            self.waiting[call] = retry
        return not self.full

    def withdraw(self, call: int) -> bool:
        return self.waiting.pop(call, None) is not None

    def sealed_by(self, *notice: Any) -> None:
        self.seals.append(notice)

    # Entities
    def command(self, command: Command, shard: int, token: Token) -> None:
        self.commands.append((command, shard, token))

    def route_again(self, reroute: Callable[[Command], bool]) -> None:
        self.reroute = reroute

    # Actions
    def begin(self, call: int, invocation: Invocation, more: bool, empty: bool) -> None:
        self.begun.append((invocation.payload, more, empty))

    def feed(self, call: int, payload: bytes) -> bool:
        return False

    def end(self, call: int) -> bool:
        return False

    def cancelled(self, call: int) -> bool:
        self.left.add(call)
        return False


class FakeSink:
    """Remembers what is published, until it is told how that ended."""

    def __init__(self) -> None:
        self.events: list[tuple[str, CloudEvent]] = []
        self.done: list[Callable[[str], None]] = []

    def publish(self, topic: str, event: CloudEvent, done: Callable[[str], None]) -> None:
        self.events.append((topic, event))
        self.done.append(done)


class Bench:
    """A dispatch in its surroundings."""

    def __init__(self, alone: bool = False, topics: Sequence[Subscription] = (), routes: Sequence[Route] = ()) -> None:
        self.sink, self.cancelled, self.drained = FakeSink(), list[int](), list[int]()
        around: Any = Surroundings(routes)
        self.around: Surroundings = around
        self.peers = Peers(around, "me")
        members = [coordination_pb2.Member(member_id=m, peer_address=f"{m}:8559") for m in ("me", "b")]
        self.peers.update(members)
        self.serving = True
        self.health = Health(around, around.services, lambda: self.serving)
        callers = Callers(around)
        self.absence = Absence(around, callers)
        peers = None if alone else self.peers
        publications = self.publications = Publications(callers, self.sink, self.cancelled.append, self.drained.append)
        commands = self.commands = Commands(around, callers, around, around, peers, self.absence, publications, lambda: None)
        self.callers = callers
        self.dispatch = Dispatch(around, around, callers, commands, around, around, around, self.health, Chosen(()), publications, topics)
        self.calls = 0

    def call(self, data: bytes = b"k", path: str = PATH, picked: tuple[bytes, ...] = (b"", b"", b""), complete: bool | None = True) -> int:
        self.calls += 1
        assert self.dispatch.on_event((api.CALL, self.calls, data, (path, complete, picked)))
        return self.calls

    def end(self, call: int) -> tuple[int, str, list[api.Header]]:
        return self.around.ended[call]
