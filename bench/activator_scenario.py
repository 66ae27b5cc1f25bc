"""The activator in front of a gRPC echo, against Go's reverse proxy in front of the same one."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator

from autoscaler.coordination import CoordinationServer
from bench.peers import go_peers
from bench.processes import Load, running, wait_listening
from bench.scenarios import LOAD_CORE, SERVER_CORE, UNARY, Server, go_peer, interleaved
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from kn_cloudstate.ports import free_port
from kn_cloudstate.results import Row


class Leader:
    """A leader with one service whose only member is the echo; runs on a thread of its own."""

    def __init__(self, backend: int) -> None:
        self.port = 0
        self._backend = backend
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, daemon=True).start()
        self._ready.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.run_forever()

    async def _serve(self) -> None:
        server = CoordinationServer(self._loop.time)
        placement = server.add_service("bench/echo", 16, (), "echo-1")
        member = pb.Member(member_id="echo", pod="echo", revision="echo-1", data_address=f"127.0.0.1:{self._backend}")
        method = pb.Method(path="/bench.Echo/Unary", persistence_id="echo", key_fields=[pb.KeyField(numbers=[1], type=9)])
        placement.hello(self._loop.time(), pb.Hello(service="bench/echo", member=member, journal_id="j", shard_count=16, methods=[method]))
        placement.heartbeat(self._loop.time() + 1e9, "echo", pb.Heartbeat(journal_ok=True))
        self.port = await server.start("127.0.0.1", 0)
        self._task = asyncio.create_task(server.run())
        self._ready.set()


def our_activator(leader: int) -> Server:
    """The activator on the best transport that is installed."""

    @contextlib.contextmanager
    def start() -> Iterator[tuple[int, int]]:
        port = free_port()
        environment = {"ACTIVATOR_PORT": str(port), "ACTIVATOR_ADMIN_PORT": "0", "CLOUDSTATE_COORDINATOR": f"127.0.0.1:{leader}"}
        with running([sys.executable, "-m", "activator"], SERVER_CORE, environment) as process:
            wait_listening(port, process)
            yield port, process.pid

    return start


def rows(rounds: int, seconds: float) -> list[Row]:
    """CPU per request of the activator against Go's reverse proxy."""
    backend = free_port()
    with running([str(go_peers()), "backend", str(backend)], LOAD_CORE) as process:
        wait_listening(backend, process)
        load = Load(UNARY, seconds)
        found = interleaved({"activator": (our_activator(Leader(backend).port), load), "go": (go_peer("reverse", backend), load)}, rounds)
    return [Row("activator h2c CPU per request", found["activator"], "µs", "Go reverse proxy", found["go"], bar=0.5)]
