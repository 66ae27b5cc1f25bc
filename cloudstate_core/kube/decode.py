"""Reads what the API server sends into the structs of `objects`.

A field that is null counts as absent: Go writes empty lists of some kinds that way (an EndpointSlice without endpoints), and so does every
bookmark. Whatever cannot be read is a `KubeError` that names the kind.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from cloudstate_core.kube.api import Kind, KubeError, error_of
from cloudstate_core.kube.objects import Object, Struct

T = TypeVar("T", bound=Object)
S = TypeVar("S")


class _Details(Struct, frozen=True):
    """How long to wait, when the server says so."""

    retry_after_seconds: float = 0.0


class Failure(Struct, frozen=True):
    """A Status that the server sent instead of an object."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details = _Details()


def document(data: bytes | msgspec.Raw, model: type[S], what: str) -> S:
    """A JSON document as a struct; KubeError about `what` when it is not one."""
    try:
        return msgspec.json.decode(data, type=model)
    except msgspec.ValidationError:
        pass
    except msgspec.DecodeError as error:
        raise KubeError(0, "Decode", f"{what}: not JSON: {error}") from error
    try:
        return msgspec.convert(_without_nulls(msgspec.json.decode(data)), type=model)
    except msgspec.MsgspecError as error:
        raise KubeError(0, "Decode", f"{what} has an unexpected form: {error}") from error


def decode(kind: Kind[T], data: bytes | msgspec.Raw) -> T:
    """An object of a kind."""
    return document(data, kind.model, f"an object of {kind.plural}")


def bare(kind: Kind[T], data: bytes | msgspec.Raw) -> T:
    """An object of which only the metadata is read, for what says no more (bookmarks) or cannot be read."""
    found = document(data, Object, f"the metadata of an object of {kind.plural}")
    return kind.model(metadata=found.metadata)


def failure(data: bytes | msgspec.Raw, status: int = 0, what: str = "", retry_after: str = "") -> KubeError:
    """The error that an answer stands for: a Status object, or any text that something on the way has sent."""
    try:
        told = document(data, Failure, "a Status")
    except KubeError:
        told = Failure(message=bytes(data)[:200].decode("utf-8", "replace"))
    seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else told.details.retry_after_seconds
    return error_of(status or told.code, told.reason, f"{what}: {told.message}" if what else told.message, seconds)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
