"""An SQLite that has no write-ahead log, as some builds and file systems have none."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any
from unittest import mock

from cloudstate_core.journal import sqlite_connection


class WithoutLog(sqlite3.Connection):
    """Asked for the log, it does as SQLite does then: it tells the mode that it has."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        return super().execute("PRAGMA journal_mode" if sql == "PRAGMA journal_mode=WAL" else sql, *parameters)


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """Journals are opened without it."""
    real = sqlite3.connect

    def connect(path: str, **options: Any) -> sqlite3.Connection:
        return real(path, factory=WithoutLog, **options)

    with mock.patch.object(sqlite_connection.sqlite3, "connect", connect):
        yield
