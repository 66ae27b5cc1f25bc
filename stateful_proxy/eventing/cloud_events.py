"""CloudEvents 1.0 as values, and as HTTP requests in binary and structured mode (pure).

Of the HTTP protocol binding: attributes are `ce-` headers, percent-encoded where a header could not carry them; the structured mode is one JSON
document. Batches are refused, for which there is no answer to each event.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from stateful_proxy.transcoding.requests import BadRequest, parse_json

STRUCTURED = "application/cloudevents+json"
REQUIRED = ("id", "source", "specversion", "type")
JSON = "application/json"
ATTRIBUTE = re.compile(r"[a-z0-9]{1,64}")
"""Names of attributes."""
_SAFE = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')
"""What the binding leaves as it is in a header."""


class InvalidEvent(Exception):
    """A request is no CloudEvent: says which attribute and which rule."""


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """One event. `attributes` holds all context attributes but the content type, as text."""

    attributes: Mapping[str, str]
    content_type: str = ""
    data: bytes = b""

    @property
    def type(self) -> str:
        """The event's type."""
        return self.attributes.get("type", "")


def is_event(headers: Mapping[str, str]) -> bool:
    """Whether a request says that it is a CloudEvent; names are lower-case."""
    return "ce-specversion" in headers or headers.get("content-type", "").lower().startswith("application/cloudevents")


def of_request(headers: Mapping[str, str], body: bytes) -> CloudEvent:
    """The event of an HTTP request, in binary or structured mode; header names are lower-case. InvalidEvent when it has none."""
    content_type = headers.get("content-type", "")
    media = content_type.partition(";")[0].strip().lower()
    if media == STRUCTURED:
        return _structured(body)
    if media.startswith("application/cloudevents"):
        raise InvalidEvent(f"content-type {media}: events are taken one at a time, in binary mode or as {STRUCTURED}")
    attributes = {name[3:]: unquote(value) for name, value in headers.items() if name.startswith("ce-")}
    return _checked(CloudEvent(attributes, content_type, body))


def _structured(body: bytes) -> CloudEvent:
    try:
        found = parse_json(body)
    except BadRequest as error:
        raise InvalidEvent(str(error)) from error
    if not isinstance(found, dict):
        raise InvalidEvent("body: must be a JSON object with the event's attributes")
    content_type = found.pop("datacontenttype", None) or JSON
    if not isinstance(content_type, str):
        raise InvalidEvent("attribute datacontenttype: must be a text")
    data = _data(found, content_type)
    attributes = {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items() if value is not None}
    return _checked(CloudEvent(attributes, content_type, data))


def _data(found: dict[str, Any], content_type: str) -> bytes:
    """The data, taken out of the document: bytes in base64, JSON as such, or text of any other content type."""
    encoded, data = found.pop("data_base64", None), found.pop("data", None)
    if encoded is not None:
        try:
            return base64.b64decode(encoded, validate=True)
        except (ValueError, TypeError) as error:
            raise InvalidEvent(f"data_base64: is not base64: {error}") from error
    if data is None:
        return b""
    if isinstance(data, str) and not is_json(content_type):
        return data.encode()
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()


def _checked(event: CloudEvent) -> CloudEvent:
    for name in REQUIRED:
        if not event.attributes.get(name):
            raise InvalidEvent(f"attribute {name}: must be there and not be empty")
    if event.attributes["specversion"] != "1.0":
        raise InvalidEvent(f"attribute specversion: {event.attributes['specversion']!r} is not supported; it must be 1.0")
    for name in event.attributes:
        if not ATTRIBUTE.fullmatch(name):
            raise InvalidEvent(f"attribute {name!r}: names have lower-case letters and digits only")
    return event


def request_headers(event: CloudEvent) -> dict[str, str]:
    """Headers of an HTTP request that carries an event in binary mode."""
    headers = {f"ce-{name}": quote(value, safe=_SAFE) for name, value in event.attributes.items()}
    if event.content_type:
        headers["content-type"] = event.content_type
    return headers


def media_of(content_type: str) -> tuple[str, dict[str, str]]:
    """Media type in lower case, and its parameters with names in lower case."""
    media, *rest = content_type.split(";")
    pairs = (part.partition("=") for part in rest)
    return media.strip().lower(), {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}


def is_json(content_type: str) -> bool:
    """Whether data of this type is JSON."""
    media, _ = media_of(content_type)
    return media == JSON or (media.startswith("application/") and media.endswith("+json"))
