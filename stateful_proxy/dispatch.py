"""What happens to each call: which method, which entity, which shard, and then here, at the owner, or later.

The proxy computes the shard itself and never trusts a router's choice. A call goes from proxy to proxy at most once; a second proxy that
does not own the shard either refuses it with `cloudstate-refused`, and whoever routed it may ask elsewhere.
"""

from __future__ import annotations

from typing import Any, Protocol

from cloudstate_core.entity_key import MalformedMessage
from cloudstate_core.hashing import shard_of
from cloudstate_core.journal.api import Token
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, ListenOptions, Outcome, Status, Transport
from stateful_proxy import reflection
from stateful_proxy.entities import Entities
from stateful_proxy.ownership import Elsewhere, Ownership, Waiting
from stateful_proxy.service import MethodInfo, ServiceModel

HEALTH_CHECK, HEALTH_WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING = b"\x08\x01"
"""Encoded grpc.health.v1.HealthCheckResponse{status: SERVING}."""
HOP = "cloudstate-hop"
LISTEN = ListenOptions(
    streaming_paths=frozenset((*reflection.PATHS, HEALTH_WATCH)), pick=("cloudstate-command-id", HOP, "cloudstate-retry")
)
SHARDS_REMEMBERED = 50_000


class Peers(Protocol):
    """Where other members take calls."""

    def address_of(self, member: str) -> str:
        """host:port, '' when unknown."""


class Dispatch:
    """Routes server events of one proxy."""

    def __init__(self, transport: Transport, model: ServiceModel, ownership: Ownership, entities: Entities, peers: Peers | None) -> None:
        self._transport, self._model, self._ownership, self._entities, self._peers = transport, model, ownership, entities, peers
        self._shards: dict[tuple[str, str], int] = {}
        self._upstreams: dict[str, int] = {}
        self._shard_count = ownership.shard_count
        self.forwarded = self.refused = 0

    def on_event(self, event: Event) -> bool:
        """Handle an event of a server call; False when it is none."""
        kind, call, data, detail = event
        if kind == api.CALL:
            self._call(call, data, detail)
        elif kind == api.CALL_MESSAGE:
            self._transport.send_message(call, reflection.answer(self._model, data))
        elif kind == api.CALL_END:
            self._transport.finish(call, Status.OK)
        elif kind == api.FORWARDED:
            outcome, text = detail
            if outcome == Outcome.REFUSED:
                self._refuse(call, text)
        elif kind == api.HTTP:
            text = b"this port speaks gRPC; HTTP/JSON is not supported yet\n"
            self._transport.respond(call, 404, [("content-type", b"text/plain; charset=utf-8")], text)
        else:
            return False
        return True

    def _call(self, call: int, data: bytes, detail: Any) -> None:
        path, complete, picked = detail
        method = self._model.methods.get(path)
        if method is None:
            self._other(call, path, complete, data)
            return
        try:
            key = self._model.key(method, data)
        except MalformedMessage as error:
            self._transport.finish(call, Status.INVALID_ARGUMENT, f"{path}: the request is not a {method.input_type}: {error}")
            return
        if not key:
            self._transport.finish(call, Status.INVALID_ARGUMENT, f"{path}: {method.key_names} must not be empty: it names the entity")
            return
        self._route(call, method, key, data, picked)

    def _other(self, call: int, path: str, complete: bool, data: bytes) -> None:
        """Reflection, health, and methods that do not exist."""
        if path == HEALTH_CHECK:
            self._transport.reply(call, SERVING)
        elif path == HEALTH_WATCH:
            self._transport.send_message(call, SERVING)
        elif path in reflection.PATHS:
            if complete:
                self._transport.finish(call, Status.OK)
            else:
                self._transport.send_message(call, reflection.answer(self._model, data))
        else:
            known = ", ".join(self._model.services)
            self._transport.finish(call, Status.UNIMPLEMENTED, f"{path}: is not a method of this service; services here: {known}")

    def _shard(self, method: MethodInfo, key: str) -> int:
        name = (method.persistence_id, key)
        shard = self._shards.get(name)
        if shard is None:
            if len(self._shards) >= SHARDS_REMEMBERED:
                self._shards.clear()
            shard = self._shards[name] = shard_of(method.persistence_id, key, self._shard_count)
        return shard

    def _route(self, call: int, method: MethodInfo, key: str, data: bytes, picked: tuple[bytes, bytes, bytes]) -> None:
        shard = self._shard(method, key)
        admission = self._ownership.admit(shard)
        if isinstance(admission, Token):
            self._entities.command(call, method, key, shard, admission, data, picked[0].decode("latin-1"), bool(picked[2]))
        elif isinstance(admission, Elsewhere):
            self._pass_on(call, admission.member, hops=picked[1])
        elif isinstance(admission, Waiting):
            if not self._ownership.when_ready(shard, lambda: self._route(call, method, key, data, picked)):
                self._transport.finish(call, Status.RESOURCE_EXHAUSTED, "too many calls wait for shards to move here; no more are taken")
        else:
            self._refuse(call, f"no-owner;generation={self._ownership.generation}")

    def _pass_on(self, call: int, member: str, hops: bytes) -> None:
        """To the owner, once."""
        address = self._peers.address_of(member) if self._peers is not None and not hops else ""
        if not address:
            self._refuse(call, f"not-owner;generation={self._ownership.generation};next={member}")
            return
        upstream = self._upstreams.get(address)
        if upstream is None:
            upstream = self._upstreams[address] = self._transport.connect(address)
        self.forwarded += 1
        self._transport.forward(call, upstream, [(HOP, b"1")])

    def _refuse(self, call: int, why: str) -> None:
        self.refused += 1
        text = f"not executed: {why}"
        self._transport.finish(call, Status.UNAVAILABLE, text, [(api.REFUSED_HEADER, why.encode())])
