"""Which proxy executes a command on an owned entity: this one, the owner of its shard, or later.

The proxy computes the shard itself and never trusts a router's choice. A command goes from proxy to proxy at most once; a second proxy that
does not own the shard either refuses it with `cloudstate-refused`, and whoever routed it may ask elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cloudstate_core.hashing import shard_of
from cloudstate_core.journal.api import Token
from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Outcome, Status, Transport
from stateful_proxy.absence import Absence
from stateful_proxy.callers import Callers
from stateful_proxy.entities import Entities
from stateful_proxy.entity import Command
from stateful_proxy.eventing.publication import Publications
from stateful_proxy.metadata import headers_of
from stateful_proxy.ownership import Elsewhere, Ownership, Unavailable, Waiting
from stateful_proxy.peers import Peers
from stateful_proxy.service import MethodInfo

COMMAND_ID, HOP, RETRY, CHAIN = "cloudstate-command-id", "cloudstate-hop", "cloudstate-retry", "cloudstate-chain"
PICKED = (COMMAND_ID, HOP, RETRY)
"""Headers by which a command is routed, in the order in which they are handed on."""
SHARDS_REMEMBERED = 10_000
MAX_PASSES = 10
"""Times that a call is passed on again after a refusal: the map change that explains the refusal is on its way here."""
PASS_AGAIN = 0.02
"""Seconds until the first of them; each later one waits that much longer."""


def routed(
    call: int, method: MethodInfo, key: str, payload: bytes, picked: tuple[bytes, ...], chain: tuple[str, ...], metadata: bytes
) -> Command:
    """A command that came with a request, `picked` being its headers of PICKED."""
    command_id, hop, retry = picked[:3]
    passed = bool(hop) and hop != b"0"
    return Command(call, method, key, payload, command_id.decode("latin-1") if command_id else "", bool(retry), passed, chain, metadata)


@dataclass(slots=True)
class _Remote:
    """A command that another proxy executes, on a stream of ours."""

    command: Command
    reply: bytes | None = None


class Commands:
    """Routes commands. `peers` is None in a standalone proxy; `flush` sends what was asked of the journal."""

    def __init__(
        self,
        transport: Transport,
        callers: Callers,
        ownership: Ownership,
        entities: Entities,
        peers: Peers | None,
        absence: Absence,
        publications: Publications,
        flush: Callable[[], None],
    ) -> None:
        self._transport, self._callers, self._ownership, self._entities = transport, callers, ownership, entities
        self._peers, self._absence, self._publications, self._flush = peers, absence, publications, flush
        self._shards: dict[tuple[str, str], int] = {}
        self._passed: dict[int, Command] = {}
        self._again: dict[int, Command] = {}
        self._remote: dict[int, _Remote] = {}
        self._shard_count = ownership.shard_count
        self.forwarded = self.refused = 0
        entities.route_again(self._moved)

    def shard(self, method: MethodInfo, key: str) -> int:
        """Where an entity belongs."""
        name = (method.persistence_id, key)
        shard = self._shards.get(name)
        if shard is None:
            if len(self._shards) >= SHARDS_REMEMBERED:
                self._shards.clear()
            shard = self._shards[name] = shard_of(method.persistence_id, key, self._shard_count)
        return shard

    def route(self, command: Command) -> None:
        """Execute a command wherever it belongs; it is answered through `Callers`."""
        call, method = command.call, command.method
        shard = self.shard(method, command.key)
        admission = self._ownership.admit(shard)
        if isinstance(admission, Token):
            if self._absence.problem:
                self._absence.hold(call, method.path, lambda: self.route(command))
                return
            if method.out:
                self._publications.begin(call, method, command.key, command.command_id)
            self._entities.command(command, shard, admission)
        elif isinstance(admission, Elsewhere):
            self._pass_on(command, admission.member)
        elif isinstance(admission, Waiting):
            if not self._ownership.when_ready(shard, call, lambda: self.route(command)):
                text = "too many calls wait for shards to move here; no more are taken"
                self._callers.finish(call, Status.RESOURCE_EXHAUSTED, text)
        elif isinstance(admission, Unavailable):
            self._callers.finish(call, Status.UNAVAILABLE, f"{method.path}: not executed: {admission.reason}")
        else:
            self._no_owner(command, f"no-owner;generation={self._ownership.generation}")

    def cancelled(self, call: int) -> bool:
        """A caller is gone; False when nothing here waits for it."""
        if self._entities.cancelled(call) or self._forsaken(call):
            return True
        if self._passed.pop(call, None) is not None:  # it left before the transport began: no end of that is told
            return True
        return self._again.pop(call, None) is not None or self._ownership.withdraw(call) or self._absence.withdraw(call)

    # To the owner -------------------------------------------------------------------------------------------------------

    def _pass_on(self, command: Command, member: str) -> None:
        """To the owner, unless another proxy has passed it on already."""
        upstream = self._peers.upstream_of(member) if self._peers is not None and not command.passed else None
        if upstream is None:
            self._no_owner(command, f"not-owner;generation={self._ownership.generation};next={member}", named=True)
            return
        self.forwarded += 1
        if command.raw:
            self._passed[command.call] = command
            self._transport.forward(command.call, upstream, [(HOP, b"1")])
        else:
            self._ask(command, upstream)

    def _ask(self, command: Command, upstream: int) -> None:
        """Send a command of our own to its owner."""
        headers = [(HOP, b"1"), (CHAIN, ",".join(command.chain).encode())]
        headers += headers_of(entity_pb2.Metadata.FromString(command.metadata))
        if command.command_id:
            headers.append((COMMAND_ID, command.command_id.encode("latin-1")))
        if command.retry:
            headers.append((RETRY, b"1"))
        stream = self._transport.open(upstream, command.method.path, headers)
        self._remote[stream] = _Remote(command)
        self._transport.send(stream, command.payload)
        self._transport.half_close(stream)

    def _forsaken(self, call: int) -> bool:
        """Nobody waits for a command that another proxy executes."""
        stream = next((stream for stream, remote in self._remote.items() if remote.command.call == call), 0)
        if stream:
            del self._remote[stream]
            self._transport.reset(stream)
        return bool(stream)

    def on_event(self, event: Event) -> bool:
        """Handle an event of a stream to an owner; False when it belongs to another."""
        kind, stream, data, detail = event
        remote = self._remote.get(stream)
        if remote is None:
            return False
        if kind == api.STREAM_MESSAGE:
            remote.reply = data
        elif kind == api.STREAM_CLOSED:
            del self._remote[stream]
            self._answered(remote, *detail)
        return True

    def _answered(self, remote: _Remote, status: int, text: str, trailers: list[api.Header], refused: bool) -> None:
        if refused or any(name == api.REFUSED_HEADER for name, _ in trailers):
            self._try_again(remote.command, text)
        elif status == Status.OK and remote.reply is not None:
            self._callers.reply(remote.command.call, remote.reply)
        else:
            self._callers.finish(remote.command.call, status or Status.UNKNOWN, text)

    def passed_on(self, call: int, outcome: int, text: str) -> None:
        """The transport's passing on has ended. One that was refused has done nothing."""
        command = self._passed.pop(call, None)
        if outcome == Outcome.REFUSED and command is not None:
            self._try_again(command, text)

    def _moved(self, command: Command) -> bool:
        """Take back what an entity here has not executed, since its shard leaves; False when another proxy sent it, which asks elsewhere."""
        if not command.passed:
            self._publications.withdraw(command.call, command.method)
            self._try_again(command, "the shard is moving")
        return not command.passed

    def _try_again(self, command: Command, text: str) -> None:
        """Who owns the shard may be known better in a moment."""
        if command.passes >= MAX_PASSES:
            self._refuse(command.call, text)
            return
        command.passes += 1
        self._again[command.call] = command
        self._transport.after(PASS_AGAIN * command.passes, lambda: self._pass_again(command.call))

    def _pass_again(self, call: int) -> None:
        command = self._again.pop(call, None)
        if command is not None:
            self.route(command)
            self._flush()

    def _no_owner(self, command: Command, why: str, named: bool = False) -> None:
        """Nobody to execute it is known here. What another proxy passed on goes back to it. A caller's router may ask an owner that is `named`
        itself; where there is none, as right after a start, or no router, there is one here in a moment."""
        if command.passed or self._peers is None or (named and command.raw):
            self._refuse(command.call, why)
        else:
            self._try_again(command, why)

    def _refuse(self, call: int, why: str) -> None:
        """Not executed: whoever routed the call may ask elsewhere."""
        self.refused += 1
        value = why.encode("ascii", "replace").translate(_NO_CONTROLS)[:512]
        self._callers.finish(call, Status.UNAVAILABLE, f"not executed: {why}", [(api.REFUSED_HEADER, value)])


_NO_CONTROLS: Any = bytes(b if 0x20 <= b < 0x7F else 0x20 for b in range(256))
"""`bytes.translate` table that leaves only what a header may carry."""
