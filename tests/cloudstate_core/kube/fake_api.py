"""A small API server in memory: lists with pages, watches, objects with resource versions; it fails as a test tells it to."""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
CUT, END = object(), object()


def status(code: int, reason: str, message: str = "told by the test", headers: dict[str, str] | None = None, **more: Any) -> web.Response:
    """A Status, as the API server answers when it refuses."""
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message, **more}
    return web.json_response(body, status=code, headers=headers)


def refusing(*args: Any, **more: Any) -> Answer:
    """An answer that is a Status."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return status(*args, **more)

    return answer


def cut(request: web.Request) -> None:
    """Lose the connection of a request."""
    if request.transport is not None:
        request.transport.abort()


class FakeApi:
    """Objects of any kind in one namespace; all share one version counter, as in etcd."""

    def __init__(self) -> None:
        self.url = ""
        self.version = 100
        self.oldest = 0
        """Watches from a version before this are refused: it is compacted."""
        self.items: dict[str, dict[str, dict[str, Any]]] = collections.defaultdict(dict)
        self.history: list[tuple[int, str, bytes]] = []
        self.asked: list[tuple[str, dict[str, str]]] = []
        """(verb, query) of every request so far."""
        self.headers: list[dict[str, str]] = []
        self.peers: set[object] = set()
        """Connections that requests came over."""
        self.faults: dict[str, collections.deque[Answer]] = collections.defaultdict(collections.deque)
        """What answers the next requests of a verb instead."""
        self.always: dict[str, Answer] = {}
        self.watches: set[asyncio.Queue[Any]] = set()
        self.any_namespace: Answer = refusing(404, "NotFound")
        """What answers for namespaces other than 'n'."""
        self._uids = itertools.count(1)
        self._snapshots: dict[str, list[dict[str, Any]]] = {}
        """What the pages of a list are cut from, by version."""
        self._runner: web.AppRunner | None = None

    async def start(self, ssl_context: Any = None, port: int = 0) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", r"/{root:apis?}/{version:.+}/namespaces/n/{plural}", self._serve)
        app.router.add_route("*", r"/{root:apis?}/{version:.+}/namespaces/n/{plural}/{name}", self._serve)
        app.router.add_route("*", "/{path:.*}", self._elsewhere)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=ssl_context).start()
        self.url = f"http{'s' if ssl_context else ''}://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        assert self._runner is not None
        self.send(CUT)
        await self._runner.cleanup()

    # What a test does -----------------------------------------------------------------------------------------------------

    def put(self, plural: str, name: str, **body: Any) -> dict[str, Any]:
        """Make or change an object."""
        old = self.items[plural].get(name)
        self.version += 1
        uid = old["metadata"]["uid"] if old else f"u{next(self._uids)}"
        metadata = {**body.pop("metadata", {}), "name": name, "namespace": "n", "uid": uid, "resourceVersion": str(self.version)}
        found = self.items[plural][name] = {"metadata": metadata, **body}
        self._tell("MODIFIED" if old else "ADDED", plural, found)
        return found

    def remove(self, plural: str, name: str) -> None:
        found = self.items[plural].pop(name)
        self.version += 1
        self._tell("DELETED", plural, {**found, "metadata": {**found["metadata"], "resourceVersion": str(self.version)}})

    def bookmark(self) -> None:
        """Tell every watch the present version."""
        body = {"metadata": {"resourceVersion": str(self.version), "creationTimestamp": None}, "data": None}
        self.send(json.dumps({"type": "BOOKMARK", "object": body}).encode() + b"\n")

    def compact(self) -> None:
        """Forget all versions before the present one."""
        self.oldest = self.version
        self.history = []

    def send(self, what: Any) -> None:
        """To every watch: bytes as they are, CUT to lose the connection, END to end it in order."""
        for watch in self.watches:
            watch.put_nowait(what)

    def count(self, verb: str) -> int:
        return sum(asked == verb for asked, _ in self.asked)

    # Serving --------------------------------------------------------------------------------------------------------------

    def _tell(self, kind: str, plural: str, found: dict[str, Any]) -> None:
        line = json.dumps({"type": kind, "object": found}).encode() + b"\n"
        self.history.append((self.version, plural, line))
        self.send((plural, line))

    async def _elsewhere(self, request: web.Request) -> web.StreamResponse:
        return await self.any_namespace(request)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        verb = request.method
        if verb == "GET" and "name" not in request.match_info:
            verb = "WATCH" if "watch" in request.query else "LIST"
        self.asked.append((verb, dict(request.query)))
        self.headers.append(dict(request.headers))
        self.peers.add(request.transport)
        if self.faults[verb]:
            return await self.faults[verb].popleft()(request)
        if verb in self.always:
            return await self.always[verb](request)
        serve: Answer = getattr(self, f"_{verb.lower()}")
        return await serve(request)

    async def _list(self, request: web.Request) -> web.StreamResponse:
        version, _, start = request.query.get("continue", f"{self.version}:0").partition(":")
        if int(version) < self.oldest:
            return status(410, "Expired", "the provided continue parameter is too old")
        plural = request.match_info["plural"]
        if start == "0":
            self._snapshots[version] = sorted(self.items[plural].values(), key=lambda item: item["metadata"]["name"])
        items = self._snapshots[version][int(start) :]
        limit = int(request.query.get("limit", 1 << 30))
        metadata = {"resourceVersion": version}
        if len(items) > limit:
            metadata["continue"] = f"{version}:{int(start) + limit}"
        return web.json_response({"metadata": metadata, "items": items[:limit]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since, plural = int(request.query["resourceVersion"]), request.match_info["plural"]
        if since < self.oldest:
            return status(410, "Expired", "too old resource version")
        response = web.StreamResponse()
        watch: asyncio.Queue[Any] = asyncio.Queue()
        for version, of, line in self.history:
            if version > since:
                watch.put_nowait((of, line))
        self.watches.add(watch)
        try:
            await response.prepare(request)
            while (what := await watch.get()) is not END:
                if what is CUT:
                    cut(request)
                    break
                data = what if isinstance(what, bytes) else what[1] if what[0] == plural else b""
                if data:
                    await response.write(data)
        finally:
            self.watches.discard(watch)
        return response

    async def _get(self, request: web.Request) -> web.StreamResponse:
        found = self.items[request.match_info["plural"]].get(request.match_info["name"])
        return web.json_response(found) if found else status(404, "NotFound")

    async def _post(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        plural, name = request.match_info["plural"], body["metadata"]["name"]
        if name in self.items[plural]:
            return status(409, "AlreadyExists")
        return web.json_response(self.put(plural, name, **body), status=201)

    async def _put(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        plural, name = request.match_info["plural"], request.match_info["name"]
        found = self.items[plural].get(name)
        if found is None:
            return status(404, "NotFound")
        if body["metadata"].get("resourceVersion", found["metadata"]["resourceVersion"]) != found["metadata"]["resourceVersion"]:
            return status(409, "Conflict")
        return web.json_response(self.put(plural, name, **body))

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        plural, name = request.match_info["plural"], request.match_info["name"]
        if name not in self.items[plural]:
            return status(404, "NotFound")
        self.remove(plural, name)
        return web.json_response({"kind": "Status", "status": "Success"})
