"""What published SDKs cannot do that others can, by the name that they announce: the proxy makes up for it.

Each of these was seen, on the package that its registry gives; `docs/reference/compatibility.md` tells what users notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quirks:
    """Of one library. The defaults are those of a library without any."""

    streams: int = 0
    """Entity streams that it serves at once; 0 = any number."""
    reads_snapshots: bool = True
    """A snapshot that it has given can be given back to it."""
    keeps_first_value: bool = True
    """In protocol 0.1: a replicated value that comes on an open stream is kept, although there was none before."""


_QUIRKS: Mapping[str, Quirks] = {
    # ten threads, each held by an open stream: two are left for everything else
    "cloudstate-python-support": Quirks(streams=8, reads_snapshots=False),
    "cloudstate-java-support": Quirks(keeps_first_value=False),
}


def quirks_of(library: str) -> Quirks:
    """Of the library with this name and version, as it announces them."""
    return _QUIRKS.get(library.split(" ")[0], Quirks())
