"""Frames between a journal server and its clients: msgpack in gRPC messages on one long stream a client.

The client opens with `Open`, the server answers `Opened` or `Rejected`; then batches of operations and their outcomes, matched by number.
"""

from __future__ import annotations

import msgspec

from cloudstate_core.journal.api import Layout, Operation, Outcome

PATH = "/cloudstate_knative.v1.Journal/Session"


class Open(msgspec.Struct, tag="open"):
    """First frame of a client."""

    keyspace: str
    shard_count: int


class Batch(msgspec.Struct, tag="batch"):
    """Operations to perform; `number` is the client's."""

    number: int
    operations: list[Operation]


class Opened(msgspec.Struct, tag="opened"):
    """The keyspace is open."""

    layout: Layout


class Rejected(msgspec.Struct, tag="rejected"):
    """The keyspace cannot be opened."""

    reason: str


class Outcomes(msgspec.Struct, tag="outcomes"):
    """Answers of batch `number`, in its order."""

    number: int
    outcomes: list[Outcome]


encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Open | Batch).decode
decode_response = msgspec.msgpack.Decoder(Opened | Rejected | Outcomes).decode
