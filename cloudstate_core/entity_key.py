"""Reads an entity's key from an encoded request without decoding the rest: proxy and activator do it for every command.

A key field is a path of field numbers and the type of the last one; of repeated occurrences the last counts, as in protobuf.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

KeyField = tuple[tuple[int, ...], int]
"""Field numbers, outermost first, and the FieldDescriptorProto.Type of the last field."""

_DOUBLE, _FLOAT, _FIXED64, _FIXED32, _BOOL, _STRING, _BYTES = 1, 2, 6, 7, 8, 9, 12
_SFIXED32, _SFIXED64, _SINT32, _SINT64, _UINT32, _UINT64 = 15, 16, 17, 18, 13, 4
_UNSIGNED = {_FIXED64, _FIXED32, _UINT32, _UINT64}


class MalformedMessage(ValueError):
    """The bytes are not a protobuf message."""


def key_of(message: bytes, fields: Sequence[KeyField]) -> str:
    """The entity key: the values of all key fields joined with '-'; '' when every one is missing or empty.

    MalformedMessage when the bytes do not parse.
    """
    if len(fields) == 1:
        numbers, kind = fields[0]
        if kind == _STRING and len(numbers) == 1 and isinstance(found := _field(message, numbers[0]), bytes):
            try:  # nearly every key there is
                return found.decode()
            except UnicodeDecodeError as error:
                raise MalformedMessage(f"key field {numbers}: {error}") from error
        return _value(message, numbers, kind)
    values = [_value(message, numbers, kind) for numbers, kind in fields]
    return "-".join(values) if any(values) else ""


def _value(message: bytes, numbers: tuple[int, ...], kind: int) -> str:
    found: bytes | int | None = message
    for number in numbers:
        found = _field(found, number) if isinstance(found, bytes) else None
    if found is None:
        return ""
    try:
        return _text(found, kind)
    except (struct.error, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise MalformedMessage(f"key field {numbers}: {error}") from error


def _text(found: bytes | int, kind: int) -> str:
    """A scalar as text, the way a person would write it."""
    if kind in (_STRING, _BYTES):
        return found.decode() if isinstance(found, bytes) else str(found)
    if kind == _DOUBLE:
        return repr(struct.unpack("<d", struct.pack("<Q", found))[0])
    if kind == _FLOAT:
        return repr(struct.unpack("<f", struct.pack("<I", found))[0])
    if not isinstance(found, int):
        raise TypeError("has the wrong wire type")
    if kind == _BOOL:
        return "true" if found else "false"
    if kind in (_SINT32, _SINT64):
        return str((found >> 1) ^ -(found & 1))
    if kind in _UNSIGNED:
        return str(found)
    bits = 32 if kind == _SFIXED32 else 64
    return str(found - (1 << bits) if found >= 1 << (bits - 1) else found)


def _field(message: bytes, wanted: int) -> bytes | int | None:
    """The last value of a field: bytes for length-delimited ones, an unsigned number for the others."""
    found: bytes | int | None = None
    at, end = 0, len(message)
    try:
        while at < end:
            tag = message[at]
            at += 1
            if tag > 127:  # most numbers here have one byte, and a call for each would cost more than all the rest
                tag, at = _varint(message, at - 1)
            wire = tag & 7
            if wire == 2:
                length = message[at]
                at += 1
                if length > 127:
                    length, at = _varint(message, at - 1)
                if tag >> 3 == wanted:
                    found = message[at : at + length]
                at += length
                continue
            if wire == 0:
                value, at = _varint(message, at)
            elif wire == 5:
                value, at = int.from_bytes(message[at : at + 4], "little"), at + 4
            elif wire == 1:
                value, at = int.from_bytes(message[at : at + 8], "little"), at + 8
            else:
                raise MalformedMessage(f"wire type {wire} is not known")
            if tag >> 3 == wanted:
                found = value
    except IndexError:
        raise MalformedMessage("the message is cut short") from None
    if at != end:
        raise MalformedMessage("the message is cut short")
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = message[at]
    if value < 128:
        return value, at + 1
    value &= 127
    shift = 7
    while True:
        at += 1
        byte = message[at]
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at + 1
        shift += 7
        if shift > 63:
            raise MalformedMessage("a number is longer than 64 bits")
