"""What a command costs the process of a Python function: the sample cart, driven as a proxy drives it, on the engine and on grpcio."""

from __future__ import annotations

import os
import pathlib
import statistics
import sys
import threading
import time

from cloudstate_sdk.pb.cloudstate import entity_pb2
from cloudstate_sdk.pb.cloudstate import event_sourced_pb2 as es

from bench.processes import running, wait_listening
from bench.scenarios import SERVER_CORE
from cloudstate_core.transport import create
from cloudstate_core.transport.api import STREAM_CLOSED, Event
from kn_cloudstate.ports import free_port
from kn_cloudstate.results import Row

ROOT = pathlib.Path(__file__).resolve().parent.parent
SERVICE, PATH = "com.example.shoppingcart.ShoppingCart", "/cloudstate.eventsourced.EventSourced/handle"
ADD = b"\x0a\x03ann\x12\x04pear\x1a\x04Pear\x20\x01"
"""An AddLineItem: one pear for ann."""
TICK = os.sysconf("SC_CLK_TCK")


class Load:
    """Entities that each get their next command as soon as the last one is answered."""

    def __init__(self, port: int, entities: int) -> None:
        self.answers = 0
        self.first = b""
        self.failed = threading.Event()
        self._transport = create("auto")
        command = entity_pb2.Command(entity_id="ann", id=1, name="AddItem")
        command.payload.type_url, command.payload.value = "type.googleapis.com/com.example.shoppingcart.AddLineItem", ADD
        self._command = es.EventSourcedStreamIn(command=command).SerializeToString()
        self._transport.start(self._told)
        function = self._transport.connect(f"127.0.0.1:{port}")
        for number in range(entities):
            stream = self._transport.open(function, PATH)
            init = es.EventSourcedInit(service_name=SERVICE, entity_id=f"user-{number}")
            self._transport.send(stream, es.EventSourcedStreamIn(init=init).SerializeToString())
            self._transport.send(stream, self._command)

    def _told(self, batch: list[Event]) -> None:
        for kind, stream, data, _ in batch:
            if kind == STREAM_CLOSED:
                self.failed.set()
                continue
            self.answers += 1
            self.first = self.first or data
            self._transport.send(stream, self._command)

    def end(self) -> None:
        self._transport.stop()
        self._transport.join()


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def measured(transport: str, entities: int, seconds: float) -> tuple[float, float]:
    """CPU µs for a command and commands in a second, of a function on one core."""
    port = free_port()
    environment = {"PORT": str(port), "PYTHONPATH": str(ROOT / "sdk/python"), "CLOUDSTATE_SDK_TRANSPORT": transport}
    with running([sys.executable, str(ROOT / "samples/shopping-cart/cart.py")], SERVER_CORE, environment) as process:
        wait_listening(port, process)
        load = Load(port, entities)
        time.sleep(1.0)  # what is measured is the pace that it finds
        begun, answers, cpu = time.perf_counter(), load.answers, _cpu(process.pid)
        time.sleep(seconds)
        took, answers, cpu = time.perf_counter() - begun, load.answers - answers, _cpu(process.pid) - cpu
        if load.failed.is_set() or not es.EventSourcedStreamOut.FromString(load.first).reply.events:
            raise RuntimeError(f"the function on {transport} does not answer")
        load.end()
    return cpu / answers * 1e6, answers / took


def rows(rounds: int, seconds: float, native: bool) -> list[Row]:
    """CPU for a command with one entity and with 64, medians of interleaved rounds."""
    result = []
    for entities, bar in ((1, 1.0), (64, 0.35)):
        found: dict[str, list[float]] = {"native": [], "grpcio": []} if native else {"grpcio": []}
        for _ in range(rounds):
            for transport, values in found.items():
                micros, rate = measured(transport, entities, seconds)
                values.append(micros)
                print(f"  function on {transport}, {entities} entities: {micros:.0f} µs, {rate:.0f} commands/s", flush=True)
        medians = {transport: statistics.median(values) for transport, values in found.items()}
        name = f"function CPU per command, {entities} busy {'entity' if entities == 1 else 'entities'}"
        if native:
            result.append(Row(f"{name} (native engine)", medians["native"], "µs", "grpcio backend", medians["grpcio"], bar=bar))
        else:
            result.append(Row(f"{name} (grpcio backend)", medians["grpcio"], "µs"))
    return result
