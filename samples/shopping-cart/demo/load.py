"""The load: a process of its own with a changeable number of workers, each adding one unique product at a time.

Control comes as lines of JSON on standard input (`{"workers": 12}`), figures go out as lines of JSON on standard output; at the end
of input the workers stop and the ledger is the last line. A command that fails is tried again with the same command id, so that the
service can tell a repetition.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
import uuid
from dataclasses import dataclass, field

import grpc
import grpc.aio

from demo.client import CartClient
from demo.ledger import Ledger

CARTS = 200
TRIES = 12
RETRIABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}


@dataclass(slots=True)
class Figures:
    """Counts since the start, and latencies since the last report in seconds."""

    sent: int = 0
    acknowledged: int = 0
    failed: int = 0
    retried: int = 0
    latencies: list[float] = field(default_factory=list)

    def report(self) -> dict[str, float]:
        """The figures as a line, starting a new list of latencies."""
        ordered = sorted(self.latencies)
        self.latencies = []
        return {
            "sent": self.sent, "acknowledged": self.acknowledged, "failed": self.failed, "retried": self.retried,
            "p50_ms": _quantile(ordered, 0.5) * 1000, "p99_ms": _quantile(ordered, 0.99) * 1000,
        }  # fmt: skip


class Load:
    """Workers against one address."""

    def __init__(self, client: CartClient) -> None:
        self.ledger, self.figures = Ledger(), Figures()
        self._client, self._numbers, self._run = client, itertools.count(), uuid.uuid4().hex[:8]
        self._workers: list[asyncio.Task[None]] = []
        self._wanted = 0

    def resize(self, workers: int) -> None:
        """Change the number of workers; surplus ones finish their command first."""
        self._wanted = workers
        while len(self._workers) < workers:
            self._workers.append(asyncio.create_task(self._work(len(self._workers))))

    async def stop(self) -> None:
        """Let every worker finish its command."""
        self._wanted = 0
        await asyncio.gather(*self._workers)

    async def _work(self, index: int) -> None:
        while True:
            if index >= self._wanted:
                if self._wanted == 0:
                    self._workers = [w for w in self._workers if w is not asyncio.current_task()]
                    return
                await asyncio.sleep(0.05)
                continue
            number = next(self._numbers)
            await self._add(f"cart-{number * 7919 % CARTS:03d}", f"product-{number}", f"{self._run}-{number}")

    async def _add(self, cart: str, product: str, command_id: str) -> None:
        """One command until it is answered or out of tries."""
        self.figures.sent += 1
        started = time.perf_counter()
        for attempt in range(TRIES):
            try:
                await self._client.add_item(cart, product, command_id, timeout=10)
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRIABLE:
                    break
                self.figures.retried += 1
                await asyncio.sleep(min(1.0, 0.05 * 2**attempt))
            else:
                self.figures.acknowledged += 1
                self.figures.latencies.append(time.perf_counter() - started)
                self.ledger.settle(cart, product, acknowledged=True)
                return
        self.figures.failed += 1
        self.ledger.settle(cart, product, acknowledged=False)


async def main(address: str) -> None:
    """Serve standard input until it ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with grpc.aio.insecure_channel(address) as channel:
        load = Load(CartClient(channel))
        reports = asyncio.create_task(_report(load))
        while line := await reader.readline():
            load.resize(json.loads(line)["workers"])
        await load.stop()
        reports.cancel()
    final = {"figures": load.figures.report(), "ledger": _plain(load.ledger)}
    print(json.dumps(final), flush=True)


async def _report(load: Load) -> None:
    while True:
        await asyncio.sleep(0.5)
        print(json.dumps(load.figures.report()), flush=True)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _plain(ledger: Ledger) -> dict[str, dict[str, list[str]]]:
    return {
        "acknowledged": {cart: sorted(products) for cart, products in ledger.acknowledged.items()},
        "unsettled": {cart: sorted(products) for cart, products in ledger.unsettled.items()},
    }


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
