"""What a caller of the Kubernetes API names and gets: kinds, selectors, errors.

A `Kind` ties a REST resource to the msgspec struct that it is read as: a projection, so that only the fields that somebody uses are
parsed and kept in memory. Writing takes plain mappings: what is sent is what the caller means, and nothing that it has not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cloudstate_core.kube.objects import Object

T_co = TypeVar("T_co", bound=Object, covariant=True)
Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind(Generic[T_co]):
    """A resource of the API. `group` is '' for the core group; `model` = the struct its objects are read as."""

    group: str
    version: str
    plural: str
    kind: str
    model: type[T_co]

    @property
    def api_version(self) -> str:
        """'v1' or '<group>/<version>', as objects carry it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """URL path of a collection (all namespaces without `namespace`), an object, or a part of one."""
        parts = ["/apis/" + self.api_version if self.group else "/api/" + self.version]
        if namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        return "/".join(parts + [part for part in (name, subresource) if part])


class KubeError(Exception):
    """The API server refused or could not be reached. `status` = HTTP status, 0 when there was no answer."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{reason or status}: {message}")
        self.status, self.reason, self.message, self.retry_after = status, reason, message, retry_after


class NotFound(KubeError):
    """404."""


class Conflict(KubeError):
    """409: changed meanwhile, exists already, or another manager owns a field."""


class Gone(KubeError):
    """410: the resource version is too old; list again."""


class TooManyRequests(KubeError):
    """429: wait for `retry_after` seconds."""


_CLASSES: Mapping[int, type[KubeError]] = {404: NotFound, 409: Conflict, 410: Gone, 429: TooManyRequests}


def error_of(status: int, reason: str, message: str, retry_after: float = 0.0) -> KubeError:
    """The error of the class that goes with a status."""
    return _CLASSES.get(status, KubeError)(status, reason, message, retry_after)
