"""The eight replicated types, and what user values are: encoded bytes that are compared and never read."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.any_pb2 import Any as AnyValue

from cloudstate_core.pb.cloudstate import crdt_pb2


class Kind(enum.IntEnum):
    """Numbered as the cases of `CrdtDelta`."""

    GCOUNTER = 1
    PNCOUNTER = 2
    GSET = 3
    ORSET = 4
    LWWREGISTER = 5
    FLAG = 6
    ORMAP = 7
    VOTE = 8


class Element(NamedTuple):
    """A user value. Equal means: the same encoded bytes."""

    type_url: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Incompatible:
    """A change that the value cannot take: says what, where and which rule."""

    reason: str


def kind_of(delta: crdt_pb2.CrdtDelta) -> Kind | None:
    """The type that a delta is for; None when it names none."""
    name = delta.WhichOneof("delta")
    return None if name is None else Kind[name.upper()]


def element_of(value: AnyValue) -> Element:
    """A user value as it came."""
    return Element(value.type_url, value.value)


def elements_of(values: Iterable[AnyValue]) -> list[Element]:
    """User values as they came, in order."""
    return [Element(value.type_url, value.value) for value in values]


def any_of(element: Element) -> AnyValue:
    """A user value as it goes out."""
    return AnyValue(type_url=element.type_url, value=element.value)


NO_TYPE = Incompatible("CrdtDelta: names no type; one of its cases must be set")
