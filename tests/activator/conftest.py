"""A transport that records, a clock that is set by hand, routes of two pods, and the golden tables of Knative."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from activator.request import PICK
from activator.router import Router
from activator.routes import RouteTable
from cloudstate_core.hashing import shard_of
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.transport import api

GOLDEN = pathlib.Path(os.environ.get("KNATIVE_GOLDEN", pathlib.Path(__file__).parent.parent / "data/knative_golden.json"))
STRING = 9
SHARDS = 8
ADD = "/shop.Cart/Add"


def pytest_generate_tests(metafunc: Any) -> None:
    """A test marked `golden("table")` runs once for each row of the table, as its argument `row`."""
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is not None:
        rows = json.loads(GOLDEN.read_text())[marker.args[0]]["cases"]
        metafunc.parametrize("row", rows, ids=[str(row.get("name") or row.get("n") or n) for n, row in enumerate(rows)])


@dataclass
class Answer:
    """How this side ended a call: a gRPC or HTTP status and its text."""

    status: int
    text: str
    headers: list[api.Header] = field(default_factory=list)


class FakeTransport:
    """Records what policy asks for. A call that ends twice, or is forwarded while it is in flight, is an error."""

    def __init__(self) -> None:
        self.now = 0.0
        self.targets: dict[int, str] = {}
        self.disconnected: list[str] = []
        self.in_flight: dict[int, str] = {}
        self.forwards: list[tuple[int, str, dict[str, bytes]]] = []
        self.answers: dict[int, Answer] = {}
        self.sent: list[tuple[int, bytes]] = []
        self.opened: list[str] = []
        self.resets: list[int] = []
        self.limits: dict[int, float] = {}
        self.peeked: list[int] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = 0

    def _id(self) -> int:
        self._ids += 1
        return self._ids

    def connect(self, target: str) -> int:
        upstream = self._id()
        self.targets[upstream] = target
        return upstream

    def disconnect(self, upstream: int) -> None:
        self.disconnected.append(self.targets.pop(upstream))

    def open(self, upstream: int, path: str, headers: Sequence[api.Header] = (), timeout: float | None = None) -> int:
        self.opened.append(path)
        return self._id()

    def reset(self, stream: int) -> None:
        self.resets.append(stream)

    def send(self, stream: int, message: bytes) -> None:
        self.sent.append((stream, message))

    def forward(self, call: int, upstream: int, headers: Sequence[api.Header] = (), remove: Sequence[str] = ()) -> None:
        assert call not in self.answers, f"call {call} has ended"
        assert call not in self.in_flight, f"call {call} is in flight already"
        self.in_flight[call] = self.targets[upstream]
        self.forwards.append((call, self.targets[upstream], dict(headers)))

    def finish(self, call: int, status: int, message: str = "", trailers: Sequence[api.Header] = ()) -> None:
        self._end(call, Answer(status, message, list(trailers)))

    def respond(self, call: int, status: int, headers: Sequence[api.Header], body: bytes) -> None:
        self._end(call, Answer(status, body.decode(), list(headers)))

    def _end(self, call: int, answer: Answer) -> None:
        assert call not in self.answers, f"call {call} ends twice"
        assert call not in self.in_flight, f"call {call} ends while it is in flight"
        self.answers[call] = answer

    def peek(self, call: int) -> None:
        assert call not in self.in_flight
        self.peeked.append(call)

    def limit(self, call: int, seconds: float) -> None:
        self.limits[call] = seconds

    def after(self, delay: float, callback: Callable[[], None]) -> int:
        timer = self._id()
        self._timers.append((self.now + delay, timer, callback))
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass and fire what is due, in order."""
        end = self.now + seconds
        while due := sorted(t for t in self._timers if t[0] <= end):
            self._timers.remove(due[0])
            self.now = due[0][0]
            due[0][2]()
        self.now = end


class House:
    """A router with its fakes, and shorthands for what happens to it."""

    def __init__(self, queue: int = 1000, hold: float = 30.0) -> None:
        self.transport = FakeTransport()
        self.table = RouteTable()
        self.reports: list[pb.RevisionStats] = []
        self.problem = ""
        transport: Any = self.transport
        self.router = Router(
            transport, self.table, queue, hold, self.reports.append, lambda: transport.now, lambda: self.problem
        )
        self._calls = 0
        self._generation = 0

    def routes(self, owners: dict[int, str], ready: Sequence[str], limit: int = 0, name: str = "shop/cart", **changes: Any) -> None:
        """The leader sends a whole map; members are those that are named."""
        self._generation += 1
        members = sorted({*owners.values(), *ready} - {""})
        revision = changes.pop("revision", "cart-1")
        route = pb.ServiceRoute(
            map=pb.MapUpdate(
                service=name,
                shard_count=SHARDS,
                generation=changes.pop("generation", self._generation),
                full=True,
                entries=[pb.ShardEntry(shard=s, owner=o, since=self._generation) for s, o in owners.items()],
                members=[pb.Member(member_id=m, pod=m, revision=revision, data_address=f"{m}:9000") for m in members],
            ),
            methods=[
                pb.Method(path=ADD, persistence_id="cart", key_fields=[pb.KeyField(numbers=[1], type=STRING)]),
                pb.Method(path="/shop.Cart/Price", persistence_id="", stateless=True),
            ],
            revisions=[pb.RevisionRoute(revision=revision, container_concurrency=limit, ready_members=ready, timeout_seconds=60)],
            hosts=[f"{name.partition('/')[2]}.shop.example.com"],
            default_revision=revision,
        )
        route.plain = changes.pop("plain", False)
        for field_name, value in changes.items():
            getattr(route, field_name).extend(value) if value else route.ClearField(field_name)
        for service in self.table.apply([route]):
            self.router.changed(service)

    def everything_at(self, member: str, **options: Any) -> None:
        """One pod is ready and owns every shard ('' = at zero)."""
        self.routes(dict.fromkeys(range(SHARDS), member), [member] if member else [], **options)

    def gone(self, name: str = "shop/cart") -> None:
        """The leader has removed a service."""
        for service in self.table.apply([pb.ServiceRoute(map=pb.MapUpdate(service=name, full=True))]):
            self.router.changed(service)

    def plain(self, *ready: str, limit: int = 0, **changes: Any) -> None:
        """The leader tells of a service without a proxy, and which of its pods are ready."""
        self.routes({}, ready, limit, plain=True, methods=[], **changes)

    @staticmethod
    def command(key: str) -> bytes:
        """A request message that names an entity."""
        return b"\x0a" + bytes([len(key.encode())]) + key.encode()

    def call(self, key: str = "ann", path: str = ADD, message: bytes | None = None, **headers: bytes) -> int:
        """A gRPC call comes in; its id."""
        self._calls += 1
        data = message if message is not None else self.command(key)
        self.router.on_event((api.CALL, self._calls, data, (path, True, self._picked(headers))))
        return self._calls

    def unseen(self, path: str = ADD) -> int:
        """A gRPC call comes in whose first message has not come yet; its id."""
        self._calls += 1
        self.router.on_event((api.CALL, self._calls, b"", (path, None, self._picked({}))))
        return self._calls

    def http(self, target: str = "/", **headers: bytes) -> int:
        """A plain HTTP request comes in; its id."""
        self._calls += 1
        self.router.on_event((api.HTTP, self._calls, b"", ("GET", target, self._picked(headers))))
        return self._calls

    def _picked(self, headers: dict[str, bytes]) -> tuple[bytes, ...]:
        named = {":authority": b"cart.shop.example.com", **{k.replace("_", "-"): v for k, v in headers.items()}}
        if "authority" in named:
            named[":authority"] = named["authority"]
        return tuple(named.get(name, b"") for name in PICK)

    def ended(self, call: int, outcome: api.Outcome = api.Outcome.DELIVERED, text: str = "0") -> None:
        """A forward has ended."""
        del self.transport.in_flight[call]
        self.router.on_event((api.FORWARDED, call, b"", (outcome, text)))

    def refused(self, call: int, why: str = "not-owner;generation=9;next=b") -> None:
        """A pod has not executed a call."""
        self.ended(call, api.Outcome.REFUSED, why)

    def cancelled(self, call: int) -> None:
        """The caller of a call that is not in flight has gone."""
        self.router.on_event((api.CALL_CANCELLED, call, b"", "gone"))

    def at(self, call: int) -> str:
        """Address at which a call is in flight, '' when it is not."""
        return self.transport.in_flight.get(call, "")

    def waiting(self) -> int:
        """Calls that wait, of all services."""
        return sum(desk.room.taken for desk in self.router.desks.values())

    @staticmethod
    def shard(key: str) -> int:
        """Shard of an entity of the method ADD."""
        return shard_of("cart", key, SHARDS)


@pytest.fixture
def house() -> House:
    """A router whose leader has told nothing yet."""
    return House()


@pytest.fixture(scope="session")
def new_house() -> type[House]:
    """For tests that need a house of their own making."""
    return House
