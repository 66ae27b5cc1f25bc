"""The proxy and activator scenarios: the same function, load and cores for the product and its peers, interleaved."""

from __future__ import annotations

import contextlib
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

from google.protobuf import descriptor_pb2

from bench.peers import go_peers, load_generator
from bench.processes import Load, measure, running, wait_listening
from cloudstate_core.pb.cloudstate import entity_pb2
from kn_cloudstate.ports import free_port
from stateful_proxy.service import ACTION, EVENT_SOURCED, VALUE_ENTITY

SERVER_CORE, LOAD_CORE = 0, 1
UNARY, UNARY_VALUE, UNARY_ACTION = "/bench.Echo/Unary", "/bench.Values/Unary", "/bench.Actions/Unary"
"""A command of an event sourced entity, of a value entity, and of an action: the same message in and out."""

Server = Callable[[], AbstractContextManager[tuple[int, int]]]
"""Starts a server under test; gives its port and pid."""


def function_spec() -> bytes:
    """What the benchmark's user function answers to discovery: an entity of each kind and an action, with a key and a payload."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench", syntax="proto3")
    message = file.message_type.add(name="Req")
    key = message.field.add(name="entity_key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    key.options.MergeFromString(b"\xc0\x43\x01")
    message.field.add(name="data", number=2, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    spec = entity_pb2.EntitySpec()
    for name, entity_type in (("Echo", EVENT_SOURCED), ("Values", VALUE_ENTITY), ("Actions", ACTION)):
        service = file.service.add(name=name)
        service.method.add(name="Unary", input_type=".bench.Req", output_type=".bench.Req")
        spec.entities.add(entity_type=entity_type, service_name=f"bench.{name}", persistence_id=name.lower())
    spec.proto = descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()
    spec.service_info.protocol_minor_version = 2
    return spec.SerializeToString()


@contextlib.contextmanager
def user_function() -> Iterator[int]:
    """The Go user function on the load's core; its port."""
    port = free_port()
    with tempfile.NamedTemporaryFile(suffix=".spec") as spec:
        pathlib.Path(spec.name).write_bytes(function_spec())
        with running([str(go_peers()), "function", str(port), spec.name], LOAD_CORE) as process:
            wait_listening(port, process)
            yield port


def our_proxy(function_port: int, transport: str) -> Server:
    """The stateful proxy, standalone, with the in-memory journal."""

    @contextlib.contextmanager
    def start() -> Iterator[tuple[int, int]]:
        port = free_port()
        environment = {
            "CLOUDSTATE_USER_FUNCTION": f"127.0.0.1:{function_port}", "CLOUDSTATE_DATA_PORT": str(port), "CLOUDSTATE_PEER_PORT": "0",
            "CLOUDSTATE_ADMIN_PORT": "0", "CLOUDSTATE_JOURNAL": "memory:", "CLOUDSTATE_TRANSPORT": transport,
            "CLOUDSTATE_SERVICE": "bench/echo",
        }  # fmt: skip
        with running([sys.executable, "-m", "stateful_proxy"], SERVER_CORE, environment) as process:
            wait_listening(port, process)
            yield port, process.pid

    return start


def go_peer(mode: str, target: int) -> Server:
    """The Go reference `proxy` or `reverse` in front of `target`."""

    @contextlib.contextmanager
    def start() -> Iterator[tuple[int, int]]:
        port = free_port()
        with running([str(go_peers()), mode, str(port), f"127.0.0.1:{target}"], SERVER_CORE) as process:
            wait_listening(port, process)
            yield port, process.pid

    return start


def interleaved(runs: Mapping[str, tuple[Server, Load]], rounds: int) -> dict[str, float]:
    """CPU µs per request of each server under its load, median of `rounds` rounds A B C A B C."""
    generator = load_generator()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (server, load) in runs.items():
            with server() as (port, pid):
                figures = measure(generator, port, pid, load, LOAD_CORE)
                found[name].append(figures["server_us"])
                print(f"  {name}: {figures['server_us']} µs, {figures['rps']} req/s, p50 {figures['p50_us']} µs", flush=True)
    return {name: statistics.median(values) for name, values in found.items()}
