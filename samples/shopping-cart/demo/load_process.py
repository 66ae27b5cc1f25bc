"""The load generator as the script sees it: a child process that takes a number of workers and tells figures."""

from __future__ import annotations

import asyncio
import json
import pathlib
import sys
from collections.abc import Mapping

from demo.ledger import Ledger

LINE_LIMIT = 1 << 26
"""Bytes of the longest line: the ledger at the end."""


class LoadProcess:
    """Owns the child; `latest` always holds its newest figures, and `figures` is the same mapping given by the caller."""

    def __init__(self, process: asyncio.subprocess.Process, figures: dict[str, float]) -> None:
        self.latest = figures
        self._process = process
        self._ledger: asyncio.Future[Ledger] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, address: str, figures: dict[str, float]) -> LoadProcess:
        """Start it with no workers."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "demo.load", address,
            cwd=pathlib.Path(__file__).resolve().parent.parent,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True, limit=LINE_LIMIT,
        )  # fmt: skip
        return cls(process, figures)

    def resize(self, workers: int) -> None:
        """Change the number of concurrent commands."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"workers": workers}).encode() + b"\n")

    async def finish(self) -> Ledger:
        """Stop the workers; what was sent and answered."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(120):
            return await self._ledger

    async def close(self) -> None:
        """End the child, whatever it is doing."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        self._reader.cancel()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            if "ledger" in message:
                self.latest.update(message["figures"])
                self._ledger.set_result(_ledger(message["ledger"]))
            else:
                self.latest.update(message)
        if not self._ledger.done():
            self._ledger.set_exception(RuntimeError("the load generator ended without its ledger"))


def _ledger(plain: Mapping[str, Mapping[str, list[str]]]) -> Ledger:
    books = {name: {cart: set(products) for cart, products in book.items()} for name, book in plain.items()}
    return Ledger(books["acknowledged"], books["unsettled"])
