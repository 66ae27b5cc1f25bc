"""What tests of every journal do alike: ask and wait, and bind the one entity that they work on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from cloudstate_core.journal.api import Activate, Active, Append, Claim, Claimed, EntityKey, Journal, Operation, Outcome, Token, Value

CART = EntityKey("cart", "ann")
PATIENCE = 60
"""Seconds until an answer must be there."""


def submit(journal: Journal, *operations: Operation) -> Future[Sequence[Outcome]]:
    """Submit one batch; its outcomes, to come."""
    answer: Future[Sequence[Outcome]] = Future()
    journal.submit(operations, answer.set_result)
    return answer


def run(journal: Journal, *operations: Operation) -> list[Outcome]:
    """Submit one batch and wait for its outcomes."""
    return list(submit(journal, *operations).result(PATIENCE))


def claim(journal: Journal, nonce: bytes = b"a", shard: int = 1, since: int = 1, expected: int = -1) -> Token:
    """Take a shard, which must be there for the taking."""
    (outcome,) = run(journal, Claim(shard, expected, since, "pod", nonce))
    assert isinstance(outcome, Claimed), outcome
    return outcome.token


def bound(journal: Journal, nonce: bytes = b"n") -> Token:
    """A token under which the cart is bound to b'b'."""
    token: Token = run(journal, Claim(0, -1, 1, "pod", nonce))[0].token  # type: ignore[union-attr]
    assert isinstance(run(journal, Activate(0, token, CART, b"b"))[0], Active)
    return token


def append(token: Token, seq: int, data: bytes = b"x", command_id: str = "") -> Append:
    """One event after sequence `seq`, under the binding of `bound`."""
    return Append(0, token, CART, b"b", seq, (Value("t", data),), command_id=command_id)
