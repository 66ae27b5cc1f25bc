"""One connection to a Redis server that was found fit to hold a journal; never repaired: what is lost stays lost, and a new one is made.

Nothing is sent twice: the `redis` package's own retries are off, since a pipeline whose answer was lost may have been performed.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any

from redis import exceptions
from redis.asyncio.connection import Connection, SSLConnection

from cloudstate_core.journal.api import JournalError
from cloudstate_core.journal.redis_address import RedisAddress
from cloudstate_core.journal.redis_calls import explained
from cloudstate_core.journal.redis_format import packed

log = logging.getLogger(__name__)

CONNECT_LIMIT = 3.0
"""Seconds until a server must have been found fit."""
ANSWER_LIMIT = 5.0
"""Seconds without an answer after which a connection counts as lost; a large pipeline has more for its way there."""
BYTES_PER_SECOND = 10e6
"""What a network carries at least."""

OLDEST = 7
"""Major version of the oldest Redis whose scripts have flags."""

_LOST = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.InvalidResponse, OSError, TimeoutError)
_ANSWERS = (exceptions.ResponseError, exceptions.BusyLoadingError, exceptions.AuthenticationError)

Answer = Any
"""An integer, bytes, None or a list of answers; a str is an error of the server, beginning with its code."""


class Unfit(Exception):
    """The server cannot be used just now; it is worth trying again."""


class Lost(Exception):
    """The connection broke; `answers` came before."""

    def __init__(self, reason: str, answers: list[Answer]) -> None:
        super().__init__(reason)
        self.answers = answers


class Link:
    """A connection that stands."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        options: dict[str, Any] = {
            "host": address.host, "port": address.port, "db": address.database, "username": address.user or None,
            "password": address.password or None, "protocol": 2, "socket_timeout": None, "retry": None, "driver_info": None,
        }  # fmt: skip
        if address.tls:
            options |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        self._connection: Any = (SSLConnection if address.tls else Connection)(**options)

    async def connect(self) -> None:
        """Connect and look whether the server may hold a journal. Unfit: not now; JournalError: not as it is set up."""
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                await self._connection.connect()
                (info,) = await self.exchange([packed(b"INFO")], 1)
        except (exceptions.BusyLoadingError, exceptions.MasterDownError) as error:
            raise Unfit(f"journal {self._address}: {explained(_text(error))}") from error
        except (exceptions.AuthenticationError, exceptions.ResponseError) as error:
            raise JournalError(f"journal {self._address}: the server refuses: {_text(error)}") from error
        except Lost as error:
            raise Unfit(f"journal {self._address}: {error}") from error
        except _LOST as error:
            raise Unfit(f"journal {self._address}: cannot be reached: {error or f'no answer within {CONNECT_LIMIT:g} s'}") from error
        self._judge(info)

    def _judge(self, info: Answer) -> None:
        """What INFO says, against what a journal needs."""
        if isinstance(info, str):
            code = info.partition(" ")[0]
            if code != "NOPERM":
                raise (Unfit if code in ("LOADING", "MASTERDOWN") else JournalError)(f"journal {self._address}: {explained(info)}")
            log.warning("journal %s: INFO is not permitted: whether its maxmemory-policy is noeviction could not be checked", self._address)
            return
        lines = info.decode(errors="replace").splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        if int(found.get("redis_version", "7").partition(".")[0]) < OLDEST:
            raise JournalError(f"journal {self._address}: is Redis {found['redis_version']}: must be {OLDEST}.0 or later")
        if found.get("redis_mode") == "cluster":
            raise JournalError(f"journal {self._address}: {explained('CLUSTERDOWN cluster mode is on')}")
        if (policy := found.get("maxmemory_policy", "noeviction")) != "noeviction":
            raise JournalError(f"journal {self._address}: maxmemory-policy is {policy}: must be noeviction, or entities are lost when memory is full")
        if found.get("role") == "slave":
            raise Unfit(f"journal {self._address}: {explained('READONLY role is slave')}")
        if found.get("loading") == "1":
            raise Unfit(f"journal {self._address}: {explained('LOADING')}")

    async def exchange(self, commands: Sequence[bytes], count: int) -> list[Answer]:
        """Send commands and read their answers, when nothing else is under way. Lost as `send` and `receive`."""
        await self.send(commands)
        return await self.receive(count)

    async def send(self, commands: Sequence[bytes]) -> None:
        """Send commands in one go. Lost when the connection breaks, or takes nothing for too long."""
        data = b"".join(commands)
        limit = ANSWER_LIMIT + len(data) / BYTES_PER_SECOND
        try:
            async with asyncio.timeout(limit):
                await self._connection.send_packed_command(data, check_health=False)
        except _LOST as error:
            raise Lost(str(error) or f"nothing was taken within {limit:.1f} s", []) from error

    async def receive(self, count: int) -> list[Answer]:
        """Read so many answers. Lost when the connection breaks or is silent for too long."""
        answers: list[Answer] = []
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            async with asyncio.timeout(ANSWER_LIMIT) as limit:
                for _ in range(count):
                    answers.append(await self._answer())
                    if (now := clock()) - started > ANSWER_LIMIT / 10:
                        started = now
                        limit.reschedule(now + ANSWER_LIMIT)
        except _LOST as error:
            raise Lost(str(error) or f"no answer within {ANSWER_LIMIT:g} s", answers) from error
        return answers

    async def _answer(self) -> Answer:
        try:
            return await self._connection.read_response(timeout=math.inf, disconnect_on_error=False)
        except _ANSWERS as error:
            return _text(error)

    async def close(self) -> None:
        """Let go. Never fails."""
        try:
            await self._connection.disconnect(nowait=True)
        except _LOST:
            log.debug("journal %s: closing failed", self._address, exc_info=True)


def _text(error: exceptions.RedisError) -> str:
    """An error as the server put it, its code first."""
    code = getattr(error, "status_code", None)
    return f"{code} {error}" if code and not str(error).startswith(code) else str(error)
