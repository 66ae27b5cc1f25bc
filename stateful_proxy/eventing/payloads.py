"""Events as payloads of methods, and answers of methods as events: the protocol's mapping (pure).

Protobuf goes by its message type. JSON, text and bytes are wrapped in field 1 of a message, under type URLs that a method which takes
`google.protobuf.Any` can have.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import BytesValue

from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport.api import Header
from stateful_proxy.eventing.cloud_events import ATTRIBUTE, JSON, CloudEvent, is_json, media_of

PROTOBUF = ("application/protobuf", "application/x-protobuf", "application/vnd.google.protobuf")
ANY_TYPE = "application/vnd.cloudstate.protobuf.any"
"""Protobuf whose type URL is the event's type, as events of entities have it."""
STRING, BYTES, JSON_HOST = "p.cloudstate.io/string", "p.cloudstate.io/bytes", "json.cloudstate.io"


@dataclass(frozen=True, slots=True)
class Payload:
    """What a method gets, as `google.protobuf.Any` has it."""

    type_url: str
    value: bytes


def payload_of(event: CloudEvent) -> Payload:
    """What a method gets of an event's data."""
    media, parameters = media_of(event.content_type)
    if media in PROTOBUF:
        name = parameters.get("proto") or parameters.get("messagetype") or event.type
        return Payload(f"type.googleapis.com/{name.rpartition('/')[2]}", event.data)
    if media == ANY_TYPE:
        return Payload(event.type, event.data)
    if is_json(event.content_type):
        return Payload(f"{JSON_HOST}/{event.type}", wrapped(event.data))
    if media.startswith("text/"):
        return Payload(STRING, wrapped(_utf8(event.data, parameters.get("charset", "utf-8"))))
    return Payload(BYTES, wrapped(event.data))


def metadata_of(event: CloudEvent) -> entity_pb2.Metadata:
    """An event's attributes as the metadata of a command."""
    metadata = entity_pb2.Metadata()
    for name, value in event.attributes.items():
        metadata.entries.add(key=f"ce-{name}", string_value=value)
    if event.content_type:
        metadata.entries.add(key="Content-Type", string_value=event.content_type)
    return metadata


def event_of(type_url: str, value: bytes, headers: Iterable[Header], source: str, event_id: str, time: str) -> CloudEvent:
    """The event that an answer is published as. `headers` = the answer's metadata, whose `ce-` attributes and content type go before what is
    made up here; `time` = now, RFC 3339."""
    host, _, name = type_url.rpartition("/")
    if host == JSON_HOST:
        kind, content_type, data = name, JSON, unwrapped(value)
    elif type_url == STRING:
        kind, content_type, data = "", "text/plain; charset=utf-8", unwrapped(value)
    elif type_url == BYTES:
        kind, content_type, data = "", "application/octet-stream", unwrapped(value)
    else:
        kind, content_type, data = name, "application/protobuf", value
    attributes = {"id": event_id, "source": source, "specversion": "1.0", "type": kind, "time": time}
    for key, raw in headers:
        text = raw.decode(errors="replace")
        if key in ("content-type", "ce-datacontenttype"):
            content_type = text or content_type
        elif key.startswith("ce-") and ATTRIBUTE.fullmatch(key[3:]) and text:
            attributes[key[3:]] = text
    attributes["type"] = attributes["type"] or type_url  # every event must have one
    return CloudEvent(attributes, content_type, data)


def wrapped(data: bytes) -> bytes:
    """Bytes in field 1 of a message, as the protocol has values that are no messages."""
    return BytesValue(value=data).SerializeToString()


def unwrapped(message: bytes) -> bytes:
    """Field 1 of a message; the bytes themselves when they are no message."""
    try:
        return BytesValue.FromString(message).value
    except DecodeError:
        return message


def _utf8(data: bytes, charset: str) -> bytes:
    try:
        return data.decode(charset).encode()
    except (LookupError, UnicodeDecodeError):
        return data
