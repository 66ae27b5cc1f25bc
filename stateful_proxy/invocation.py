"""One command on its way to a method, wherever it came from: a caller, a forward, a side effect, or an event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stateful_proxy.service import MethodInfo


@dataclass(slots=True)
class Invocation:
    """What is asked of whom. Never changed (and not frozen, which would make it five times as dear)."""

    method: MethodInfo
    payload: bytes
    metadata: bytes = b""
    """Encoded, for actions; entities get what is chosen of it."""
    command_id: str = ""
    """Under which an entity remembers that it was done; '' = it does not."""
    chain: tuple[str, ...] = ()
    """Methods that led here by forwards and side effects, the first one first."""
    type_url: str = ""
    """Of the payload, when it is not the method's input type: an event for a method that takes any."""


Invoke = Callable[[int, Invocation], None]
"""Execute an invocation for a call; the call is answered through `Callers`, exactly once."""
