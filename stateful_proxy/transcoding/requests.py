"""HTTP requests as messages: path, query and body, each by the rule of its route. Whatever cannot be taken is told with its name.

Precedence: a path variable wins over the body. With `body: "*"` there are no query parameters; else every field that neither path nor body
holds may come from the query, nested ones with dots, repeated ones repeatedly, by their name in the proto or in JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from stateful_proxy.transcoding.rules import HTTP_BODY, WHOLE, Route, fields_at

_SCALAR_MESSAGES = frozenset(
    f"google.protobuf.{name}"
    for name in ("Timestamp", "Duration", "FieldMask", "DoubleValue", "FloatValue", "Int64Value", "UInt64Value", "Int32Value", "UInt32Value",
                 "BoolValue", "StringValue", "BytesValue")
)  # fmt: skip
_NUMBERS = frozenset((FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64))


class BadRequest(Exception):
    """A request that cannot be taken: the text names the parameter or the field."""


def message_of(route: Route, variables: dict[str, str], query: str, content_type: str, body: bytes) -> bytes:
    """The encoded request message. BadRequest when a part does not fit."""
    message: Message = message_factory.GetMessageClass(route.method.input_type)()
    if route.method.input_type.full_name == HTTP_BODY and route.body == WHOLE:
        _fill_http_body(message, content_type, body)
    elif route.body:
        _fill_from_body(message, route.body, content_type, body)
    if query and route.body == WHOLE:
        raise BadRequest(f"query parameter {query.partition('=')[0]}: not taken here, where the body is the whole message")
    if query:
        _fill_from_query(message, route, variables, query)
    for name, text in variables.items():
        _set(message, name, [text], f"path variable {name}")
    return message.SerializeToString()


def message_of_json(kind: Descriptor, body: bytes) -> bytes:
    """The encoded message of a type that a JSON document stands for. BadRequest when it does not."""
    message: Message = message_factory.GetMessageClass(kind)()
    _fill_from_body(message, WHOLE, "application/json", body)
    return message.SerializeToString()


def _fill_http_body(message: Any, content_type: str, body: bytes) -> None:
    message.content_type, message.data = content_type, body


def _fill_from_body(message: Message, rule: str, content_type: str, body: bytes) -> None:
    target: Any = message
    if rule != WHOLE:
        field = message.DESCRIPTOR.fields_by_name[rule]
        if field.message_type is not None and field.message_type.full_name == HTTP_BODY:
            _fill_http_body(getattr(message, rule), content_type, body)
            return
    media = content_type.partition(";")[0].strip().lower()
    if media != "application/json" and (body or media):
        raise BadRequest(f"content-type {media or '(none)'}: the body of this method must be application/json")
    if not body.strip():
        return  # no body: a message with no field set
    found = parse_json(body)
    name = message.DESCRIPTOR.full_name
    if rule != WHOLE:
        found = {rule: found}
    elif not isinstance(found, dict) and not name.startswith("google.protobuf."):
        raise BadRequest(f"body: must be a JSON object, the fields of a {name}")
    try:
        json_format.ParseDict(found, target)
    except json_format.ParseError as error:
        raise BadRequest(f"body: {error}") from error
    except (RecursionError, ValueError, TypeError, AttributeError) as error:
        raise BadRequest(f"body: is not the JSON of a {name}: {error}") from error


def parse_json(body: bytes) -> Any:
    """The document in a body. BadRequest for what is none, has a field twice, or a text that is not Unicode."""
    try:
        text = body.decode()
        found = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()  # half a pair of \u escapes is no text
        return found
    except UnicodeDecodeError as error:
        raise BadRequest(f"body: is not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"body: is not JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(f"field {twice!r} is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _fill_from_query(message: Message, route: Route, variables: dict[str, str], query: str) -> None:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=1_000)
    except ValueError as error:
        raise BadRequest(f"query: {error}") from error
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    for name, texts in values.items():
        if name in variables:
            raise BadRequest(f"query parameter {name}: is in the path already")
        if route.body and name.partition(".")[0] == route.body:
            raise BadRequest(f"query parameter {name}: is the body already")
        _set(message, name, texts, f"query parameter {name}")


def _set(message: Message, name: str, texts: Sequence[str], what: str) -> None:
    """Set the field on a way of names. BadRequest when there is none, or a text is no value of it."""
    descriptor: Any = message.DESCRIPTOR
    fields = fields_at(descriptor, name.split("."))
    if fields is None:
        raise BadRequest(f"{what}: {descriptor.full_name} has no such field")
    *way, field = fields
    if any(step.is_repeated for step in way):
        raise BadRequest(f"{what}: leads through a repeated field")
    if field.message_type is not None and (field.message_type.GetOptions().map_entry or field.message_type.full_name not in _SCALAR_MESSAGES):
        raise BadRequest(f"{what}: is a message; name one of its fields")
    if len(texts) > 1 and not field.is_repeated:
        raise BadRequest(f"{what}: is there {len(texts)} times; the field is not repeated")
    values = [_value(field, text, what) for text in texts]
    target: Any = message
    for step in way:
        target = getattr(target, step.name)
    part = type(target)()
    try:
        json_format.ParseDict({field.json_name: values if field.is_repeated else values[0]}, part)
    except (json_format.ParseError, ValueError, TypeError) as error:
        raise BadRequest(f"{what}: {', '.join(map(repr, texts))} is no value of it: {error}") from error
    parsed = getattr(part, field.name)
    if field.is_repeated:
        getattr(target, field.name).extend(parsed)
    elif field.message_type is not None:
        getattr(target, field.name).CopyFrom(parsed)
    else:
        setattr(target, field.name, parsed)


def _value(field: FieldDescriptor, text: str, what: str) -> Any:
    """A text as the JSON value of a field."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL or (field.message_type is not None and field.message_type.name == "BoolValue"):
        if text not in ("true", "false"):
            raise BadRequest(f"{what}: {text!r} must be true or false")
        return text == "true"
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return int(text) if text.lstrip("-").isdecimal() else text
    if kind in _NUMBERS and not text.lstrip("-").isdecimal():
        raise BadRequest(f"{what}: {text!r} must be a whole number")
    if field.type == FieldDescriptor.TYPE_BYTES or (field.message_type is not None and field.message_type.name == "BytesValue"):
        return _base64(text, what)
    return text


def _base64(text: str, what: str) -> str:
    """Either alphabet, padded or not, in the form that the JSON parser takes."""
    plain = text.rstrip("=").replace("-", "+").replace("_", "/").replace(" ", "+")
    try:
        return base64.b64encode(base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)).decode()
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{what}: is not base64: {error}") from error
