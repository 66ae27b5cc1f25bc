"""What each call is: a command for an entity or an action, or something that the proxy answers itself.

Whatever comes in is told apart here, once; forwards, side effects, events and HTTP requests enter by `invoke` and are told apart alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError

from cloudstate_core.entity_key import MalformedMessage
from cloudstate_core.pb.cloudstate_knative.v1 import peer_pb2
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, ListenOptions, Outcome, Status, Transport
from stateful_proxy import health, reflection
from stateful_proxy.actions import Actions
from stateful_proxy.callers import Callers
from stateful_proxy.commands import CHAIN, COMMAND_ID, PICKED, Commands, routed
from stateful_proxy.crdt.crdts import Crdts
from stateful_proxy.crdt.replication import REPLICATE
from stateful_proxy.entity import Command
from stateful_proxy.eventing.publication import Publications
from stateful_proxy.eventing.subscriptions import Subscription
from stateful_proxy.eventing.topics import Topics
from stateful_proxy.health import Health
from stateful_proxy.http_calls import HttpCalls
from stateful_proxy.invocation import Invocation
from stateful_proxy.metadata import Chosen, metadata_of
from stateful_proxy.ownership import Ownership
from stateful_proxy.peers import SEALED
from stateful_proxy.service import CRDT, MethodInfo, ServiceModel

MAX_COMMAND_ID = 256
"""Bytes that a caller may send, since the id is stored with every command. Proxies may pass on longer ones: those of effects and forwards grow."""


def listen_options(model: ServiceModel, peer: bool = False) -> ListenOptions:
    """What the data port accepts, or the peer port: one more header is picked there, by which its calls are told from the others."""
    streaming = {*reflection.PATHS, health.WATCH, *(m.path for m in model.methods.values() if m.client_streaming)}
    return ListenOptions(streaming_paths=frozenset(streaming), pick=(*PICKED, CHAIN) if peer else PICKED)


class Dispatch:
    """Tells the server events of one proxy apart."""

    def __init__(
        self,
        transport: Transport,
        model: ServiceModel,
        callers: Callers,
        commands: Commands,
        actions: Actions,
        crdts: Crdts,
        ownership: Ownership,
        health_: Health,
        chosen: Chosen,
        publications: Publications,
        topics: Sequence[Subscription],
    ) -> None:
        """`topics`: the consumers of events that come as HTTP CloudEvents."""
        self._transport, self._model, self._callers = transport, model, callers
        self._methods = model.methods
        self._commands, self._actions, self._crdts, self._ownership, self._health = commands, actions, crdts, ownership, health_
        self._chosen = chosen or None
        self._publications = publications
        self.topics = Topics(callers, self.invoke, self.cancel, model, topics)
        self._http = HttpCalls(transport, model, callers, self._execute_http, self.cancel, self.topics)
        self._reflecting: set[int] = set()
        self._unasked: set[int] = set()
        """Calls that watch health and have not said what yet."""
        self.abandoned = 0
        """Calls whose callers left, or whose deadlines passed, before their answer."""

    def on_event(self, event: Event) -> bool:
        """Handle an event of a server call; False when it is none."""
        kind, call, data, detail = event
        if kind == api.CALL:
            self.call(call, data, detail)
        elif kind == api.CALL_MESSAGE:
            if call in self._reflecting:
                self._reflect(call, data)
            elif call in self._unasked:
                self._unasked.discard(call)
                self._health.watch(call, data)
            else:
                self._actions.feed(call, data)
        elif kind == api.CALL_END:
            if call in self._reflecting:
                self._reflecting.discard(call)
                self._transport.finish(call, Status.OK)
            elif call in self._unasked:
                self._unasked.discard(call)
                self._transport.finish(call, Status.INVALID_ARGUMENT, f"{health.WATCH}: the request has no message")
            else:
                self._actions.end(call)
        elif kind == api.CALL_CANCELLED:
            self.abandoned += 1
            return self.cancel(call)
        elif kind == api.DRAINED:
            return self._actions.drained(call)
        elif kind == api.FORWARDED:
            if detail[0] != Outcome.REFUSED:
                self._callers.detach(call)
            self._commands.passed_on(call, *detail)
        elif kind == api.HTTP:
            self._http.begin(call, data, *detail)
        else:
            return False
        return True

    def cancel(self, call: int) -> bool:
        """A caller is gone; False when nothing here waits for it."""
        self._callers.detach(call)
        self._reflecting.discard(call)
        self._unasked.discard(call)
        rooms = (self._commands, self._actions, self._crdts, self.topics)
        return any(room.cancelled(call) for room in rooms) or self._health.forget(call)

    def call(self, call: int, data: bytes, detail: Any) -> None:
        """A gRPC call has come, see `api.CALL`."""
        path, complete, picked = detail
        method = self._methods.get(path)
        if method is None:
            self._other(call, path, complete, data, picked)
            return
        passed = len(picked) > len(PICKED)
        chain = _chain(picked[-1]) if passed else ()
        if not method.owned:
            metadata = metadata_of(self._transport.headers(call))
            self._anywhere(call, Invocation(method, data, metadata, "", chain), more=complete is not True, empty=complete is None)
            return
        if len(picked[0]) > MAX_COMMAND_ID and not passed:
            text = f"{path}: {COMMAND_ID} must not be longer than {MAX_COMMAND_ID} bytes"
            self._transport.finish(call, Status.INVALID_ARGUMENT, text)
            return
        key = self._key(call, method, data)
        if key:
            chosen = self._chosen.of(metadata_of(self._transport.headers(call))) if self._chosen is not None else b""
            self._commands.route(routed(call, method, key, data, picked, chain, chosen))

    def invoke(self, call: int, invocation: Invocation) -> None:
        """Execute a command that came by another way than gRPC; the call is answered through `Callers`."""
        method = invocation.method
        if not method.owned:
            self._anywhere(call, invocation)
            return
        key = self._key(call, method, invocation.payload)
        if key:
            chosen = self._chosen.of(invocation.metadata) if self._chosen is not None else b""
            payload, command_id, chain = invocation.payload, invocation.command_id, invocation.chain
            self._commands.route(Command(call, method, key, payload, command_id, chain=chain, metadata=chosen, raw=False))

    def _execute_http(self, call: int, method: MethodInfo, payload: bytes, picked: tuple[bytes, ...]) -> None:
        """Execute a command that came as HTTP; one for another proxy's entity is passed on as the request that it was."""
        if not method.owned:
            self._anywhere(call, Invocation(method, payload, metadata_of(self._transport.headers(call))))
        elif len(picked[0]) > MAX_COMMAND_ID:
            text = f"{method.path}: {COMMAND_ID} must not be longer than {MAX_COMMAND_ID} bytes"
            self._callers.finish(call, Status.INVALID_ARGUMENT, text)
        elif key := self._key(call, method, payload):
            chosen = self._chosen.of(metadata_of(self._transport.headers(call))) if self._chosen is not None else b""
            self._commands.route(routed(call, method, key, payload, picked, (), chosen))

    def _anywhere(self, call: int, invocation: Invocation, more: bool = False, empty: bool = False) -> None:
        """A command that any proxy may execute. `more`: further requests may follow; `empty`: there is no first one yet."""
        method = invocation.method
        if method.out:
            self._publications.begin(call, method, command_id=invocation.command_id)
        if method.entity_type == CRDT:
            if key := self._key(call, method, invocation.payload):
                self._crdts.command(call, invocation, key, self._chosen.of(invocation.metadata) if self._chosen is not None else b"")
            return
        self._actions.begin(call, invocation, more, empty)

    def _key(self, call: int, method: MethodInfo, data: bytes) -> str:
        """The key in a request; '' when it has none, which the caller has been told then."""
        try:
            key = self._model.key(method, data)
        except MalformedMessage as error:
            self._callers.finish(call, Status.INVALID_ARGUMENT, f"{method.path}: the request is not a {method.input_type}: {error}")
            return ""
        if not key:
            text = f"{method.path}: {method.key_names} must not be empty: it names the entity"
            self._callers.finish(call, Status.INVALID_ARGUMENT, text)
        return key

    # Everything but commands --------------------------------------------------------------------------------------------

    def _other(self, call: int, path: str, complete: bool | None, data: bytes, picked: tuple[bytes, ...]) -> None:
        """Health, reflection, peers, and methods that do not exist."""
        if path == health.CHECK:
            self._health.check(call, data)
        elif path == health.WATCH:
            if complete is None:
                self._unasked.add(call)
            else:
                self._health.watch(call, data)
        elif path in reflection.PATHS:
            if not complete:
                self._reflecting.add(call)
            if complete is not None and self._reflect(call, data) and complete:
                self._transport.finish(call, Status.OK)
        elif path == SEALED and len(picked) > len(PICKED):
            self._sealed(call, data)
        elif path == REPLICATE and len(picked) > len(PICKED):
            self._crdts.received(call, data)
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


def _chain(header: bytes) -> tuple[str, ...]:
    """Methods that led to a call from another proxy."""
    return tuple(header.decode("latin-1").split(",")) if header else ()
