"""The file that a child process writes its output to, and what it said last: the reason, when it has ended unasked."""

from __future__ import annotations

import pathlib
from typing import IO

LAST_WORDS = 8192
"""Bytes at the end of a log in which its last line is looked for."""


class ProcessLog:
    """A file that is appended to; what was in it before is not what this process said."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._begins = path.stat().st_size if path.exists() else 0

    def open(self) -> IO[bytes]:
        """The file, to be given to the process. OSError when it cannot be written."""
        return self.path.open("ab")

    def last(self) -> str:
        """The last line that was written, without its `error: `; '' when there is none, or somebody has put the file away."""
        try:
            with self.path.open("rb") as file:
                end = file.seek(0, 2)
                file.seek(max(self._begins, end - LAST_WORDS))
                lines = file.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip().removeprefix("error: ") for line in reversed(lines) if line.strip()), "")

    def reason(self) -> str:
        """What it said last, and where the rest is."""
        last = self.last()
        return f"{last} (log: {self.path})" if last else f"it said nothing (log: {self.path})"
