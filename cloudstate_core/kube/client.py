"""Typed calls to the API server over the `kubernetes` package's own asyncio transport and configuration.

Every failure is a `KubeError`, a dead connection included; nothing is retried here: callers are control loops, which know when.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

import aiohttp
import msgspec
from kubernetes.aio import config
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from cloudstate_core.kube.api import Body, Kind, KubeError, error_of
from cloudstate_core.kube.objects import Object, Struct

T = TypeVar("T", bound=Object)

LIMIT = 500
"""Objects in one page of a list."""
CALL_LIMIT = 30.0
"""Seconds a call may take."""
WATCH_SECONDS = 60
"""How long the server keeps a watch open; it is renewed from where it ended."""
WATCH_SILENCE = WATCH_SECONDS + 15.0
"""Seconds without a byte after which a watch counts as dead."""
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"


class _Failure(Struct, frozen=True):
    """A Status that the server sent instead of an object."""

    code: int = 0
    reason: str = ""
    message: str = ""


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _ListMetadata(Struct, frozen=True):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct):
    metadata: _ListMetadata
    items: list[msgspec.Raw] = []


class KubeClient:
    """One API server. Make it with `connect`, end it with `close`."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._rest = RESTClientObject(configuration)

    @classmethod
    async def connect(cls, kubeconfig: str = "") -> KubeClient:
        """From a kubeconfig file (or $KUBECONFIG), else as the pod's service account. KubeError when neither is there."""
        configuration = Configuration()
        configuration.connection_pool_maxsize = 0
        path = kubeconfig or os.environ.get("KUBECONFIG", "")
        try:
            if path:
                await config.load_kube_config(path, client_configuration=configuration, persist_config=False)
            else:
                config.load_incluster_config(configuration)
        except config.ConfigException as error:
            raise KubeError(0, "Configuration", f"no way to the API server: {error}") from error
        return cls(configuration)

    async def close(self) -> None:
        """Close every connection."""
        await self._rest.close()

    # Reading ------------------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind[T], namespace: str, name: str) -> T:
        """One object. NotFound when it is not there."""
        return _decode(kind, await self._call("GET", kind.path(namespace, name)))

    async def list(
        self, kind: Kind[T], namespace: str = "", labels: str = "", fields: str = ""
    ) -> tuple[list[T], str]:
        """All objects of a selection, page by page, and the resource version to watch from."""
        found: list[T] = []
        query = {"limit": str(LIMIT), **_selectors(labels, fields)}
        while True:
            page = msgspec.json.decode(await self._call("GET", kind.path(namespace), query), type=_Page)
            found += [_decode(kind, item) for item in page.items]
            if not page.metadata.continue_:
                return found, page.metadata.resource_version
            query["continue"] = page.metadata.continue_

    async def watch(
        self, kind: Kind[T], version: str, namespace: str = "", labels: str = "", fields: str = ""
    ) -> AsyncIterator[tuple[str, T]]:
        """Changes after `version`: ('ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK', object), until the server ends the watch.

        Gone when `version` is too old; another KubeError when the connection breaks.
        """
        query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS)}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_LIMIT, sock_read=WATCH_SILENCE)
        response = await self._send("GET", kind.path(namespace), query | _selectors(labels, fields), timeout=timeout)
        try:
            async for line in _lines(response):
                event = msgspec.json.decode(line, type=_Event)
                if event.type == "ERROR":
                    failure = msgspec.json.decode(event.object, type=_Failure)
                    raise error_of(failure.code, failure.reason, failure.message)
                yield event.type, _decode(kind, event.object)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise KubeError(0, "Watch", f"the watch of {kind.plural} broke: {error!r}") from error
        finally:
            response.close()

    # Writing ------------------------------------------------------------------------------------------------------------

    async def create(self, kind: Kind[T], namespace: str, body: Body) -> T:
        """A new object. Conflict when it exists already."""
        return _decode(kind, await self._call("POST", kind.path(namespace), body=_complete(kind, body)))

    async def replace(self, kind: Kind[T], namespace: str, name: str, body: Body) -> T:
        """The whole object anew. Conflict when its resource version is not the present one."""
        return _decode(kind, await self._call("PUT", kind.path(namespace, name), body=_complete(kind, body)))

    async def apply(
        self, kind: Kind[T], namespace: str, name: str, body: Body, manager: str, subresource: str = "", force: bool = True
    ) -> T:
        """Server-side apply: these fields are `manager`'s and have these values; fields that it named before and does not now go away."""
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        metadata = {**body.get("metadata", {}), "name": name}
        complete = {**_complete(kind, body), "metadata": metadata}
        return _decode(kind, await self._call("PATCH", kind.path(namespace, name, subresource), query, complete, APPLY))

    async def merge(self, kind: Kind[T], namespace: str, name: str, body: Body, subresource: str = "") -> T:
        """JSON merge patch."""
        return _decode(kind, await self._call("PATCH", kind.path(namespace, name, subresource), body=body, content_type=MERGE))

    async def scale(self, kind: Kind[T], namespace: str, name: str, replicas: int) -> None:
        """Set the replicas through the /scale part."""
        await self._call("PATCH", kind.path(namespace, name, "scale"), body={"spec": {"replicas": replicas}}, content_type=MERGE)

    async def delete(self, kind: Kind[T], namespace: str, name: str) -> None:
        """Ask for an object's end; what is not there is no error."""
        try:
            await self._call("DELETE", kind.path(namespace, name))
        except KubeError as error:
            if error.status != 404:
                raise

    # Calls --------------------------------------------------------------------------------------------------------------

    async def _call(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Body | None = None, content_type: str = "application/json"
    ) -> bytes:
        timeout = aiohttp.ClientTimeout(total=CALL_LIMIT)
        response = await self._send(method, path, query or {}, body, content_type, timeout)
        try:
            return bytes(await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise KubeError(0, "Connection", f"{method} {path}: {error!r}") from error

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Body | None = None,
        content_type: str = "application/json",
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request; its response once the headers are there, with a status below 400."""
        url = self._configuration.host + path + ("?" + urlencode(query) if query else "")
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": "cloudstate-knative"}
        token = await self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            headers["Authorization"] = token
        try:
            answer = await self._rest.request(method, url, headers, body, _request_timeout=timeout)
            response: aiohttp.ClientResponse = answer.response
            if response.status >= 400:
                raise _failure(response, await response.read(), f"{method} {path}")
        except (aiohttp.ClientError, TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            raise KubeError(0, "Connection", f"{method} {path}: {error!r}") from error
        return response


def _complete(kind: Kind[Any], body: Body) -> Body:
    return {"apiVersion": kind.api_version, "kind": kind.kind, **body}


def _selectors(labels: str, fields: str) -> dict[str, str]:
    return {k: v for k, v in (("labelSelector", labels), ("fieldSelector", fields)) if v}


def _decode(kind: Kind[T], data: bytes | msgspec.Raw) -> T:
    try:
        return msgspec.json.decode(data, type=kind.model)
    except msgspec.MsgspecError as error:
        raise KubeError(0, "Decode", f"an object of {kind.plural} has an unexpected form: {error}") from error


def _failure(response: aiohttp.ClientResponse, data: bytes, what: str) -> KubeError:
    try:
        status = msgspec.json.decode(data, type=_Failure)
    except msgspec.MsgspecError:
        status = _Failure(message=data[:200].decode("utf-8", "replace"))
    after = response.headers.get("Retry-After", "")
    return error_of(response.status, status.reason, f"{what}: {status.message}", float(after) if after.isdecimal() else 0.0)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole lines of a body, of any length."""
    rest = bytearray()
    async for chunk in response.content.iter_any():
        rest += chunk
        if b"\n" in chunk:
            *lines, tail = bytes(rest).split(b"\n")
            rest = bytearray(tail)
            for line in lines:
                if line:
                    yield line
