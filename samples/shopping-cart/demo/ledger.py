"""What the demo sent and what the service still knows: the check that nothing acknowledged is lost or applied twice (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Ledger:
    """Every command adds one unique product to a cart, so the carts tell exactly which commands were applied, and how often."""

    acknowledged: dict[str, set[str]] = field(default_factory=dict)
    """By cart: products whose command was answered OK."""
    unsettled: dict[str, set[str]] = field(default_factory=dict)
    """By cart: products whose command failed for good; it may have been applied, but at most once."""

    def settle(self, cart: str, product: str, acknowledged: bool) -> None:
        """Note the outcome of a command."""
        book = self.acknowledged if acknowledged else self.unsettled
        book.setdefault(cart, set()).add(product)

    @property
    def carts(self) -> list[str]:
        """Every cart that a command was sent to."""
        return sorted(self.acknowledged.keys() | self.unsettled.keys())


@dataclass(frozen=True, slots=True)
class Verdict:
    """Counts of commands."""

    acknowledged: int
    lost: int
    duplicated: int
    unknown_items: int
    """Products in a cart that nobody sent."""

    @property
    def clean(self) -> bool:
        """True when nothing was lost, applied twice or made up."""
        return not (self.lost or self.duplicated or self.unknown_items)


def judge(ledger: Ledger, carts: Mapping[str, Mapping[str, int]]) -> Verdict:
    """Compare the ledger with the carts as the service tells them: cart → product → quantity."""
    lost = duplicated = unknown = acknowledged = 0
    for cart in ledger.carts:
        held = carts.get(cart, {})
        sure = ledger.acknowledged.get(cart, set())
        maybe = ledger.unsettled.get(cart, set())
        acknowledged += len(sure)
        lost += sum(product not in held for product in sure)
        duplicated += sum(held[product] > 1 for product in held)
        unknown += sum(product not in sure and product not in maybe for product in held)
    return Verdict(acknowledged, lost, duplicated, unknown)
