"""The messages of a stream as the function's protocol version has them.

Sessions speak 0.2. A function of 0.1 gets a whole value where 0.2 has a delta on empty: in `init`, for a value that was made elsewhere, and for
new keys of maps; and it makes values by `create`. Some numbers of fields are other ones, too.
"""

from __future__ import annotations

from typing import Protocol

from cloudstate_core.pb.cloudstate import crdt_pb2 as now
from cloudstate_core.pb.cloudstate_knative.v1 import crdt_0_1_pb2 as old
from stateful_proxy.libraries import Quirks


class Dialect(Protocol):
    """How one stream is written and read."""

    keeps_first_value: bool
    """A function that holds no value can be given one on an open stream, not in `init` alone."""

    def encode(self, message: now.CrdtStreamIn, first_value: bool) -> bytes:
        """A message for the function; `first_value`: it holds none yet."""

    def decode(self, data: bytes) -> now.CrdtStreamOut:
        """A message of the function's. DecodeError when it does not parse."""


class Present:
    """Protocol 0.2."""

    keeps_first_value = True

    def encode(self, message: now.CrdtStreamIn, first_value: bool) -> bytes:
        """See Dialect."""
        return message.SerializeToString()

    def decode(self, data: bytes) -> now.CrdtStreamOut:
        """See Dialect."""
        return now.CrdtStreamOut.FromString(data)


class Legacy:
    """Protocol 0.1."""

    def __init__(self, keeps_first_value: bool = True) -> None:
        self.keeps_first_value = keeps_first_value

    def encode(self, message: now.CrdtStreamIn, first_value: bool) -> bytes:
        """See Dialect."""
        out = old.CrdtStreamIn()
        match message.WhichOneof("message"):
            case "init":
                out.init.service_name, out.init.entity_id = message.init.service_name, message.init.entity_id
                if message.init.HasField("delta"):
                    _to_state(message.init.delta, out.init.state)
            case "delta" if first_value:
                _to_state(message.delta, out.state)
            case "delta":
                _to_old(message.delta, out.changed)
            case "delete":
                out.deleted.SetInParent()
            case "command":
                out.command.CopyFrom(message.command)
            case "stream_cancelled":
                out.stream_cancelled.CopyFrom(message.stream_cancelled)
        return out.SerializeToString()

    def decode(self, data: bytes) -> now.CrdtStreamOut:
        """See Dialect."""
        said, message = old.CrdtStreamOut.FromString(data), now.CrdtStreamOut()
        match said.WhichOneof("message"):
            case "reply":
                reply = message.reply
                reply.command_id, reply.streamed = said.reply.command_id, said.reply.streamed
                reply.side_effects.extend(said.reply.side_effects)
                if said.reply.HasField("client_action"):
                    reply.client_action.CopyFrom(said.reply.client_action)
                if said.reply.HasField("state_action"):
                    _to_now_action(said.reply.state_action, reply.state_action)
                reply.SetInParent()
            case "stream_cancelled_response":
                response = message.stream_cancelled_response
                response.command_id = said.stream_cancelled_response.command_id
                response.side_effects.extend(said.stream_cancelled_response.side_effects)
                if said.stream_cancelled_response.HasField("state_action"):
                    _to_now_action(said.stream_cancelled_response.state_action, response.state_action)
                response.SetInParent()
            case "streamed_message":
                message.streamed_message.CopyFrom(said.streamed_message)
            case "failure":
                message.failure.CopyFrom(said.failure)
        return message


def dialect_of(protocol: tuple[int, int], quirks: Quirks) -> Dialect:
    """For a function of this protocol version."""
    return Present() if protocol == (0, 2) else Legacy(quirks.keeps_first_value)


def _to_now_action(action: old.CrdtStateAction, target: now.CrdtStateAction) -> None:
    target.write_consistency = action.write_consistency
    match action.WhichOneof("action"):
        case "create":
            _to_delta(action.create, target.update)
            target.update.SetInParent()
        case "update":
            _to_now(action.update, target.update)
            target.update.SetInParent()
        case "delete":
            target.delete.SetInParent()


# Deltas -----------------------------------------------------------------------------------------------------------------


def _to_old(delta: now.CrdtDelta, target: old.CrdtDelta) -> None:
    """A delta for the function."""
    name = delta.WhichOneof("delta")
    if name is None:
        return
    if name != "ormap":
        getattr(target, name).CopyFrom(getattr(delta, name))
        return
    target.ormap.cleared = delta.ormap.cleared
    target.ormap.removed.extend(delta.ormap.removed)
    for entry in delta.ormap.updated:
        _to_old(entry.delta, target.ormap.updated.add(key=entry.key).delta)
    for entry in delta.ormap.added:
        _to_state(entry.delta, target.ormap.added.add(key=entry.key).value)
    target.ormap.SetInParent()


def _to_now(delta: old.CrdtDelta, target: now.CrdtDelta) -> None:
    """A delta of the function's."""
    name = delta.WhichOneof("delta")
    if name is None:
        return
    if name != "ormap":
        getattr(target, name).CopyFrom(getattr(delta, name))
        return
    target.ormap.cleared = delta.ormap.cleared
    target.ormap.removed.extend(delta.ormap.removed)
    for entry in delta.ormap.updated:
        _to_now(entry.delta, target.ormap.updated.add(key=entry.key).delta)
    for added in delta.ormap.added:
        _to_delta(added.value, target.ormap.added.add(key=added.key).delta)
    target.ormap.SetInParent()


# Whole values -----------------------------------------------------------------------------------------------------------


def _to_state(delta: now.CrdtDelta, target: old.CrdtState) -> None:
    """A delta on empty as the value that it makes."""
    match delta.WhichOneof("delta"):
        case "gcounter":
            target.gcounter.value = delta.gcounter.increment
        case "pncounter":
            target.pncounter.value = delta.pncounter.change
        case "gset":
            target.gset.items.extend(delta.gset.added)
        case "orset":
            target.orset.items.extend(delta.orset.added)
        case "lwwregister":
            target.lwwregister.CopyFrom(delta.lwwregister)
        case "flag":
            target.flag.CopyFrom(delta.flag)
        case "vote":
            vote = delta.vote
            target.vote.CopyFrom(old.VoteState(votes_for=vote.votes_for, total_voters=vote.total_voters, self_vote=vote.self_vote))
        case "ormap":
            for entry in delta.ormap.added:
                _to_state(entry.delta, target.ormap.entries.add(key=entry.key).value)
    if name := delta.WhichOneof("delta"):
        getattr(target, name).SetInParent()


def _to_delta(state: old.CrdtState, target: now.CrdtDelta) -> None:
    """A value as a delta on empty."""
    match state.WhichOneof("state"):
        case "gcounter":
            target.gcounter.increment = state.gcounter.value
        case "pncounter":
            target.pncounter.change = state.pncounter.value
        case "gset":
            target.gset.added.extend(state.gset.items)
        case "orset":
            target.orset.added.extend(state.orset.items)
        case "lwwregister":
            target.lwwregister.CopyFrom(state.lwwregister)
        case "flag":
            target.flag.CopyFrom(state.flag)
        case "vote":
            target.vote.self_vote = state.vote.self_vote
        case "ormap":
            for entry in state.ormap.entries:
                _to_delta(entry.value, target.ormap.added.add(key=entry.key).delta)
    if name := state.WhichOneof("state"):
        getattr(target, name).SetInParent()
