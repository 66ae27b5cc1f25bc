"""Typed calls to the API server over the `kubernetes` package's own asyncio transport and configuration.

Every failure is a `KubeError`, a dead connection or an answer that is not the API's included; nothing is retried here: callers are
control loops, which know when.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

import aiohttp
import msgspec
from kubernetes.aio.client.rest import RESTClientObject

from cloudstate_core.kube.access import Access
from cloudstate_core.kube.api import Body, Gone, Kind, KubeError
from cloudstate_core.kube.decode import bare, decode, document, failure
from cloudstate_core.kube.objects import Object, Struct

log = logging.getLogger(__name__)

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


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _ListMetadata(Struct, frozen=True):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct):
    metadata: _ListMetadata
    items: list[msgspec.Raw] | None = None


class KubeClient:
    """One API server. Make it with `connect`, end it with `close`."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._closed = False
        try:
            self._rest = RESTClientObject(access.configuration)
        except OSError as error:
            raise KubeError(0, "Configuration", f"the certificates for {access.host} cannot be read: {error}") from error

    @classmethod
    async def connect(cls, kubeconfig: str = "") -> KubeClient:
        """From a kubeconfig file (or $KUBECONFIG), else as the pod's service account. KubeError when neither is there."""
        return cls(await Access.load(kubeconfig))

    async def close(self) -> None:
        """Close every connection; later calls fail."""
        self._closed = True
        await self._rest.close()

    # Reading ------------------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind[T], namespace: str, name: str) -> T:
        """One object. NotFound when it is not there."""
        return decode(kind, await self._call("GET", kind.path(namespace, name)))

    async def _pages(self, kind: Kind[T], namespace: str, query: dict[str, str]) -> tuple[list[T], str]:
        found: list[T] = []
        while True:
            page = document(await self._call("GET", kind.path(namespace), query), _Page, f"a list of {kind.plural}")
            for item in page.items or ():
                try:
                    found.append(decode(kind, item))
                except KubeError as error:
                    log.error("%s is left out: %s", bare(kind, item).metadata.key, error)
            if not page.metadata.continue_:
                return found, page.metadata.resource_version
            query = query | {"continue": page.metadata.continue_}

    async def list(
        self, kind: Kind[T], namespace: str = "", labels: str = "", fields: str = ""
    ) -> tuple[list[T], str]:
        """All objects of a selection, and the resource version to watch from. Objects that cannot be read are logged and left out."""
        selectors = _selectors(labels, fields)
        try:
            return await self._pages(kind, namespace, selectors | {"limit": str(LIMIT)})
        except Gone:  # the server forgot the version of the first page before the last one was read
            return await self._pages(kind, namespace, selectors)

    async def watch(
        self, kind: Kind[T], version: str, namespace: str = "", labels: str = "", fields: str = ""
    ) -> AsyncGenerator[tuple[str, T], None]:
        """Changes after `version`: ('ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK', object), until the server ends the watch.

        A bookmark has metadata only. An object that cannot be read is logged and told as DELETED, as a list would leave it out.
        Gone when `version` is too old; another KubeError when the connection breaks.
        """
        query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS)}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_LIMIT, sock_read=WATCH_SILENCE)
        response = await self._send("GET", kind.path(namespace), query | _selectors(labels, fields), timeout=timeout)
        try:
            async with contextlib.aclosing(_lines(response)) as lines:
                async for line in lines:
                    event = document(line, _Event, f"a change of {kind.plural}")
                    if event.type == "ERROR":
                        raise failure(event.object)
                    yield _change(kind, event)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise KubeError(0, "Watch", f"the watch of {kind.plural} broke: {error!r}") from error
        finally:
            response.close()

    # Writing ------------------------------------------------------------------------------------------------------------

    async def create(self, kind: Kind[T], namespace: str, body: Body) -> T:
        """A new object. Conflict when it exists already."""
        return decode(kind, await self._call("POST", kind.path(namespace), body=_complete(kind, body)))

    async def replace(self, kind: Kind[T], namespace: str, name: str, body: Body) -> T:
        """The whole object anew. Conflict when its resource version is not the present one."""
        return decode(kind, await self._call("PUT", kind.path(namespace, name), body=_complete(kind, body)))

    async def apply(
        self, kind: Kind[T], namespace: str, name: str, body: Body, manager: str, subresource: str = "", force: bool = True
    ) -> T:
        """Server-side apply: these fields are `manager`'s and have these values; fields that it named before and does not now go away."""
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        metadata = {**body.get("metadata", {}), "name": name}
        complete = {**_complete(kind, body), "metadata": metadata}
        return decode(kind, await self._call("PATCH", kind.path(namespace, name, subresource), query, complete, APPLY))

    async def merge(self, kind: Kind[T], namespace: str, name: str, body: Body, subresource: str = "") -> T:
        """JSON merge patch."""
        return decode(kind, await self._call("PATCH", kind.path(namespace, name, subresource), body=body, content_type=MERGE))

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
        if self._closed:
            raise KubeError(0, "Closed", f"{method} {path}: the client is closed")
        url = self._access.host + path + ("?" + urlencode(query) if query else "")
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": "cloudstate-knative"}
        authorization = await self._access.authorization()
        if authorization:
            headers["Authorization"] = authorization
        try:
            answer = await self._rest.request(method, url, headers, body, _request_timeout=timeout)
            response: aiohttp.ClientResponse = answer.response
            if response.status >= 400:
                if response.status == 401:
                    self._access.refused(authorization)
                after = response.headers.get("Retry-After", "")
                raise failure(await response.read(), response.status, f"{method} {path}", after)
        except (aiohttp.ClientError, TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            raise KubeError(0, "Connection", f"{method} {path}: {error!r}") from error
        return response


def _complete(kind: Kind[Any], body: Body) -> Body:
    return {"apiVersion": kind.api_version, "kind": kind.kind, **body}


def _selectors(labels: str, fields: str) -> dict[str, str]:
    return {k: v for k, v in (("labelSelector", labels), ("fieldSelector", fields)) if v}


def _change(kind: Kind[T], event: _Event) -> tuple[str, T]:
    if event.type == "BOOKMARK":
        return event.type, bare(kind, event.object)
    try:
        return event.type, decode(kind, event.object)
    except KubeError as error:
        unread = bare(kind, event.object)
        log.error("%s is left out: %s", unread.metadata.key, error)
        return "DELETED", unread


async def _lines(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """Whole lines of a body, of any length; what has no end when the body ends is dropped."""
    rest = bytearray()
    async for chunk in response.content.iter_any():
        rest += chunk
        if b"\n" in chunk:
            *lines, tail = bytes(rest).split(b"\n")
            rest = bytearray(tail)
            for line in lines:
                if line:
                    yield line
