"""What the methods of a class must look like besides their types: their names, how many arguments they take, and whether they return or yield.

Each check gives the rule that is broken, '' when none is: as a class is decorated, not as its first command comes.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Any

_ARGUMENTS = {"command": ("self", "request", "context"), "event": ("self", "event"), "snapshot": ("self",), "restore": ("self", "saved")}
STREAMS = (AsyncIterator, AsyncIterable)


def served_by(name: str, wanted: Sequence[str]) -> str:
    """The gRPC method that a method stands for, of those of its service: `AddItem` of `add_item`; else the one that is the same but for capitals,
    such as `addItem` or `GetURL`."""
    found, plain = re.sub(r"(?:^|_)([a-z0-9])", lambda match: match[1].upper(), name), name.replace("_", "").lower()
    close = [method for method in wanted if method.lower() == plain]
    return close[0] if found not in wanted and len(close) == 1 else found


def of_method(method: Callable[..., Any], role: str) -> str:
    """For what a decorator of methods has marked."""
    wanted = _ARGUMENTS[role]
    if not _takes(method, *wanted):
        return f"must take ({', '.join(wanted)})"
    if role != "command" and (inspect.iscoroutinefunction(method) or _yields(method)):
        return f"must neither be async nor yield: @{role} is for a plain method"
    return ""


def of_answers(method: Callable[..., Any], streams: bool) -> str:
    """For a command; `streams`: it gives its answers one by one."""
    if streams and (inspect.iscoroutinefunction(method) or inspect.isgeneratorfunction(method)):
        return "streams its answers, so it must be an async generator: `async def` with `yield`"
    if not streams and _yields(method):
        return "answers once, so it must return its answer and not yield"
    return ""


def of_requests(method: Callable[..., Any], streams: bool) -> str:
    """For a command; `streams`: it takes an iterator of its requests."""
    hint = typing.get_type_hints(method)[list(inspect.signature(method).parameters)[1]]
    if streams and typing.get_origin(hint) not in STREAMS:
        return "the request streams, so parameter 1 must be annotated with AsyncIterator[...]"
    if not streams and typing.get_origin(hint) in STREAMS:
        return "the request does not stream, so parameter 1 must be annotated with what it is, not with an iterator"
    return ""


def of_class(entity: type, keyed: bool) -> str:
    """For a class; `keyed`: it is made with the id of its entity."""
    if keyed:
        return "" if _takes(entity, "entity_id") else "is made with its id, so it needs `def __init__(self, entity_id: str)`"
    return "" if _takes(entity) else "is made without arguments, so `__init__` must need none"


def _takes(what: Callable[..., Any], *arguments: str) -> bool:
    try:
        inspect.signature(what).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # of a class that is written in C, nobody can tell
        return True
    return True


def _yields(method: Callable[..., Any]) -> bool:
    return inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method)
