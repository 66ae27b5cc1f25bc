"""What happens to each call: which method, which entity, which shard, and then here, at the owner, or later.

The proxy computes the shard itself and never trusts a router's choice. A call goes from proxy to proxy at most once; a second proxy that
does not own the shard either refuses it with `cloudstate-refused`, and whoever routed it may ask elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import DecodeError

from cloudstate_core.entity_key import MalformedMessage
from cloudstate_core.hashing import shard_of
from cloudstate_core.journal.api import Token
from cloudstate_core.pb.cloudstate_knative.v1 import peer_pb2
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, ListenOptions, Outcome, Status, Transport
from stateful_proxy import health, reflection
from stateful_proxy.entities import Entities
from stateful_proxy.health import Health
from stateful_proxy.ownership import Elsewhere, Ownership, Unavailable, Waiting
from stateful_proxy.peers import SEALED, Peers
from stateful_proxy.service import MethodInfo, ServiceModel

HOP = "cloudstate-hop"
_STREAMING = frozenset((*reflection.PATHS, health.WATCH))
LISTEN = ListenOptions(streaming_paths=_STREAMING, pick=("cloudstate-command-id", HOP, "cloudstate-retry"))
PEER_LISTEN = ListenOptions(streaming_paths=_STREAMING, pick=(*LISTEN.pick, "cloudstate-peer"))
"""The peer port: one more header is picked, by which its calls are told from those of the data port."""
SHARDS_REMEMBERED = 50_000
MAX_COMMAND_ID = 256
"""Bytes; the id is stored with every command."""
MAX_PASSES = 10
"""Times that a call is passed on again after a refusal: the map change that explains the refusal is on its way here."""
PASS_AGAIN = 0.02
"""Seconds until the first of them; each later one waits that much longer."""


@dataclass(frozen=True, slots=True)
class _Command:
    """A call on an entity that another proxy owns. Never changed."""

    method: MethodInfo
    key: str
    data: bytes
    picked: tuple[bytes, ...]
    passes: int = 0


class Dispatch:
    """Routes server events of one proxy. `peers` is None in a standalone proxy; `flush` sends what was asked of the journal."""

    def __init__(
        self,
        transport: Transport,
        model: ServiceModel,
        ownership: Ownership,
        entities: Entities,
        peers: Peers | None,
        health_: Health,
        flush: Callable[[], None],
    ) -> None:
        self._transport, self._model, self._ownership, self._entities = transport, model, ownership, entities
        self._peers, self._health, self._flush = peers, health_, flush
        self._shards: dict[tuple[str, str], int] = {}
        self._reflecting: set[int] = set()
        self._passed: dict[int, _Command] = {}
        self._again: dict[int, _Command] = {}
        self._shard_count = ownership.shard_count
        self.forwarded = self.refused = 0

    def on_event(self, event: Event) -> bool:
        """Handle an event of a server call; False when it is none."""
        kind, call, data, detail = event
        if kind == api.CALL:
            self._call(call, data, detail)
        elif kind == api.CALL_MESSAGE:
            if call in self._reflecting:
                self._reflect(call, data)
        elif kind == api.CALL_END:
            if call in self._reflecting:
                self._reflecting.discard(call)
                self._transport.finish(call, Status.OK)
        elif kind == api.CALL_CANCELLED:
            return self._cancelled(call)
        elif kind == api.FORWARDED:
            self._forwarded(call, *detail)
        elif kind == api.HTTP:
            text = b"this port speaks gRPC; HTTP/JSON is not supported yet\n"
            self._transport.respond(call, 404, [("content-type", b"text/plain; charset=utf-8")], text)
        else:
            return False
        return True

    def _cancelled(self, call: int) -> bool:
        """A caller is gone; False when nothing here waits for it."""
        self._reflecting.discard(call)
        return self._again.pop(call, None) is not None or self._ownership.withdraw(call) or self._health.forget(call)

    def _call(self, call: int, data: bytes, detail: Any) -> None:
        path, complete, picked = detail
        method = self._model.methods.get(path)
        if method is None:
            self._other(call, path, complete, data, picked)
            return
        try:
            key = self._model.key(method, data)
        except MalformedMessage as error:
            self._transport.finish(call, Status.INVALID_ARGUMENT, f"{path}: the request is not a {method.input_type}: {error}")
            return
        if not key:
            self._transport.finish(call, Status.INVALID_ARGUMENT, f"{path}: {method.key_names} must not be empty: it names the entity")
            return
        if len(picked[0]) > MAX_COMMAND_ID:
            text = f"{path}: cloudstate-command-id must not be longer than {MAX_COMMAND_ID} bytes"
            self._transport.finish(call, Status.INVALID_ARGUMENT, text)
            return
        self._route(call, method, key, data, picked)

    # Everything but commands --------------------------------------------------------------------------------------------

    def _other(self, call: int, path: str, complete: bool, data: bytes, picked: tuple[bytes, ...]) -> None:
        """Health, reflection, peers, and methods that do not exist."""
        if path == health.CHECK:
            self._health.check(call, data)
        elif path == health.WATCH:
            self._health.watch(call, data)
        elif path in reflection.PATHS:
            if not complete:
                self._reflecting.add(call)
            if self._reflect(call, data) and complete:
                self._transport.finish(call, Status.OK)
        elif path == SEALED and len(picked) == len(PEER_LISTEN.pick):
            self._sealed(call, data)
        else:
            known = ", ".join(self._model.services)
            self._transport.finish(call, Status.UNIMPLEMENTED, f"{path}: is not a method of this service; services here: {known}")

    def _reflect(self, call: int, data: bytes) -> bool:
        try:
            answer = reflection.answer(self._model, data)
        except DecodeError:
            self._reflecting.discard(call)
            self._transport.finish(call, Status.INVALID_ARGUMENT, "the message is not a ServerReflectionRequest")
            return False
        self._transport.send_message(call, answer)
        return True

    def _sealed(self, call: int, data: bytes) -> None:
        """Another proxy has sealed a shard that is to come here."""
        try:
            notice = peer_pb2.SealedNotice.FromString(data)
        except DecodeError:
            self._transport.finish(call, Status.INVALID_ARGUMENT, f"{SEALED}: the request is not a SealedNotice")
            return
        self._ownership.sealed_by(notice.owner, notice.shard, notice.since, notice.epoch)
        self._transport.reply(call, b"")

    # Commands -----------------------------------------------------------------------------------------------------------

    def _shard(self, method: MethodInfo, key: str) -> int:
        name = (method.persistence_id, key)
        shard = self._shards.get(name)
        if shard is None:
            if len(self._shards) >= SHARDS_REMEMBERED:
                self._shards.clear()
            shard = self._shards[name] = shard_of(method.persistence_id, key, self._shard_count)
        return shard

    def _route(self, call: int, method: MethodInfo, key: str, data: bytes, picked: tuple[bytes, ...], passes: int = 0) -> None:
        shard = self._shard(method, key)
        admission = self._ownership.admit(shard)
        if isinstance(admission, Token):
            command_id = picked[0].decode("latin-1") if picked[0] else ""
            self._entities.command(call, method, key, shard, admission, data, command_id, bool(picked[2]))
        elif isinstance(admission, Elsewhere):
            self._pass_on(call, _Command(method, key, data, picked, passes), admission.member)
        elif isinstance(admission, Waiting):
            if not self._ownership.when_ready(shard, call, lambda: self._route(call, method, key, data, picked, passes)):
                self._transport.finish(call, Status.RESOURCE_EXHAUSTED, "too many calls wait for shards to move here; no more are taken")
        elif isinstance(admission, Unavailable):
            self._transport.finish(call, Status.UNAVAILABLE, f"{method.path}: not executed: {admission.reason}")
        else:
            self._refuse(call, f"no-owner;generation={self._ownership.generation}")

    def _pass_on(self, call: int, command: _Command, member: str) -> None:
        """To the owner, unless another proxy has passed it on already."""
        upstream = self._peers.upstream_of(member) if self._peers is not None and command.picked[1] in (b"", b"0") else None
        if upstream is None:
            self._refuse(call, f"not-owner;generation={self._ownership.generation};next={member}")
            return
        self.forwarded += 1
        self._passed[call] = command
        self._transport.forward(call, upstream, [(HOP, b"1")])

    def _forwarded(self, call: int, outcome: int, text: str) -> None:
        """A forward has ended. One that was refused has done nothing, and who owns the shard may be known better in a moment."""
        command = self._passed.pop(call, None)
        if outcome != Outcome.REFUSED:
            return
        if command is None or command.passes >= MAX_PASSES:
            self._refuse(call, text)
            return
        self._again[call] = replace(command, passes=command.passes + 1)
        self._transport.after(PASS_AGAIN * (command.passes + 1), lambda: self._pass_again(call))

    def _pass_again(self, call: int) -> None:
        command = self._again.pop(call, None)
        if command is not None:
            self._route(call, command.method, command.key, command.data, command.picked, command.passes)
            self._flush()

    def _refuse(self, call: int, why: str) -> None:
        """Not executed: whoever routed the call may ask elsewhere."""
        self.refused += 1
        value = why.encode("ascii", "replace").translate(_NO_CONTROLS)[:512]
        self._transport.finish(call, Status.UNAVAILABLE, f"not executed: {why}", [(api.REFUSED_HEADER, value)])


_NO_CONTROLS = bytes(b if 0x20 <= b < 0x7F else 0x20 for b in range(256))
"""`bytes.translate` table that leaves only what a header may carry."""
