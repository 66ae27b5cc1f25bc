"""Measured results in one form, so that demo, benchmarks and tests of every kind can be read as one table.

A file `build/results/<topic>.json` holds `{"topic", "commit", "machine", "rows"}`; a row compares a value with a peer measured in
the same run (`ratio`) or with a bar. Whether the bar is met is computed here, never written by hand.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

FOLDER = pathlib.Path("build/results")


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `bar` bounds the ratio where there is a peer, else the value; `sense` says from which side."""

    name: str
    value: float | None
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    bar: float | None = None
    sense: Literal["at most", "at least"] = "at most"

    @property
    def ratio(self) -> float | None:
        """value ÷ peer_value; None without a peer."""
        if self.value is None or not self.peer_value:
            return None
        return self.value / self.peer_value

    @property
    def met(self) -> bool | None:
        """Whether the bar holds; None without a bar. A value that could not be measured does not meet its bar."""
        if self.bar is None:
            return None
        measured = self.value if self.peer is None else self.ratio
        if measured is None:
            return False
        return measured <= self.bar if self.sense == "at most" else measured >= self.bar

    def as_json(self) -> dict[str, Any]:
        """The row as written to the file."""
        fields = asdict(self) | {"ratio": self.ratio, "met": self.met}
        order = ("name", "value", "unit", "peer", "peer_value", "ratio", "bar", "sense", "met")
        return {key: round(v, 4) if isinstance(v := fields[key], float) else v for key in order}


def commit() -> str:
    """Short id of the checked-out commit, with `+` when files differ from it; 'unknown' outside a checkout."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if dirty else "")


def machine() -> str:
    """What the figures were measured on: architecture, cores, Python."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def write(topic: str, rows: Sequence[Row], folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """Write `<folder>/<topic>.json` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{topic}.json"
    content = {"topic": topic, "commit": commit(), "machine": machine(), "rows": [row.as_json() for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(contents: Sequence[dict[str, Any]]) -> str:
    """All rows of some result files as one Markdown table."""
    columns = ("topic", "name", "value", "unit", "peer", "peer_value", "ratio", "bar", "met")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for content in contents:
        for row in content["rows"]:
            cells = [content["topic"], *(_cell(row.get(column)) for column in columns[1:])]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Print every result file as one table."""
    files = sorted(FOLDER.glob("*.json"))
    if not files:
        print(f"no results in {FOLDER}/: run `make demo` or `make bench` first", file=sys.stderr)
        return 1
    print(table([json.loads(path.read_text()) for path in files]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
