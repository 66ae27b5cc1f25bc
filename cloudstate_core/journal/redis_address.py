"""Where a Redis journal is: read from its URL, without ever showing the password (`str` of an address leaves it out)."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from cloudstate_core.journal.api import JournalError

SCHEMES = ("redis", "rediss")
_RULE = "must be redis://[user:password@]host[:port][/database], or rediss:// for TLS"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A database of a Redis server, and as whom to use it."""

    host: str
    port: int = 6379
    database: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.database}"


def redis_address(url: str, password: str = "") -> RedisAddress:
    """Read a URL; `password` wins over the URL's own. JournalError names what is wrong, never the user or the password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise JournalError(f"journal of Redis: {error}: {_RULE}") from None
    if parts.scheme not in SCHEMES or not host:
        raise JournalError(f"journal of Redis: a URL without a host: {_RULE}")
    database = parts.path.removeprefix("/")
    if database and not database.isdecimal():
        raise JournalError(f"journal {parts.scheme}://{host}: database {database!r} is not a number: {_RULE}")
    if parts.query or parts.fragment:
        raise JournalError(f"journal {parts.scheme}://{host}: takes no options after its database: {_RULE}")
    return RedisAddress(
        host=host,
        port=6379 if port is None else port,
        database=int(database or 0),
        user=unquote(parts.username or ""),
        password=password or unquote(parts.password or ""),
        tls=parts.scheme == "rediss",
    )
