"""What functions may make of replicated values: deltas of every kind, and whole values as protocol 0.1 has them."""

from __future__ import annotations

from typing import Any

from tests.fuzz.draw import Draw
from tests.stateful_proxy.crdt.bench import text

KINDS = ("gcounter", "pncounter", "gset", "orset", "lwwregister", "flag", "ormap", "vote")


def fill_delta(draw: Draw, delta: Any, kind: str, depth: int) -> None:
    """A delta of some kind; those of maps hold others."""
    part = getattr(delta, kind)
    part.SetInParent()
    match kind:
        case "gcounter":
            part.increment = draw.often(1, (0, 2**64 - 1, 2**63))
        case "pncounter":
            part.change = draw.often(draw.number(1), (-(2**63), 2**63 - 1))
        case "gset":
            part.added.extend(text(draw.choice("abc")) for _ in range(draw.below(3)))
        case "orset":
            part.cleared = draw.seldom()
            part.removed.extend(text(draw.choice("abc")) for _ in range(draw.below(2)))
            part.added.extend(text(draw.choice("abc")) for _ in range(draw.below(3)))
        case "lwwregister":
            part.value.CopyFrom(text(draw.choice("abc")))
            part.clock, part.custom_clock_value = draw.often(0, (1, 2, 3, 9)), draw.often(draw.number(1), (-(2**63), 2**63 - 1))
        case "flag":
            part.value = draw.flag()
        case "vote":
            part.self_vote, part.votes_for, part.total_voters = draw.flag(), draw.number(2), draw.number(2)
        case "ormap" if depth:
            part.cleared = draw.seldom()
            part.removed.extend(text(draw.choice("abc")) for _ in range(draw.below(2)))
            for _ in range(draw.below(3)):
                fill_delta(draw, part.updated.add(key=text(draw.choice("abc"))).delta, draw.choice(KINDS), depth - 1)
            for _ in range(draw.below(3)):
                added = part.added.add(key=text(draw.choice("abc")))
                if hasattr(added, "delta"):
                    fill_delta(draw, added.delta, draw.choice(KINDS), depth - 1)
                else:
                    fill_state(draw, added.value, draw.choice(KINDS), depth - 1)


def fill_state(draw: Draw, state: Any, kind: str, depth: int) -> None:
    """A whole value, as protocol 0.1 has them."""
    part = getattr(state, kind)
    part.SetInParent()
    match kind:
        case "gcounter" | "pncounter":
            part.value = draw.below(9)
        case "gset" | "orset":
            part.items.extend(text(draw.choice("abc")) for _ in range(draw.below(3)))
        case "lwwregister":
            part.value.CopyFrom(text(draw.choice("abc")))
        case "flag":
            part.value = draw.flag()
        case "vote":
            part.self_vote = draw.flag()
        case "ormap" if depth:
            for _ in range(draw.below(3)):
                fill_state(draw, part.entries.add(key=text(draw.choice("abc"))).value, draw.choice(KINDS), depth - 1)
