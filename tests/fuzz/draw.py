"""Decisions from bytes: a fuzzer changes bytes, a target needs choices. Every sequence of bytes is a valid script; the end of them reads as zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Reads decisions from the front. `rarity`: one choice in so many is an odd one, see `often`."""

    def __init__(self, data: bytes, rarity: int = 8) -> None:
        self._data, self._at, self.rarity = data, 0, rarity

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def byte(self) -> int:
        """0 to 255."""
        at, self._at = self._at, min(self._at + 1, len(self._data))
        return self._data[at] if at < len(self._data) else 0

    def below(self, bound: int) -> int:
        """0 to bound - 1, of at most 256."""
        return self.byte() % bound

    def flag(self, one_in: int = 2) -> bool:
        """Now and then; never once the bytes are at their end."""
        return self.byte() % one_in == one_in - 1

    def choice(self, options: Sequence[T]) -> T:
        """One of them; the first once the bytes are at their end."""
        return options[self.below(len(options))]

    def seldom(self) -> bool:
        """Something odd happens."""
        return self.flag(self.rarity)

    def often(self, usual: T, odd: Sequence[T]) -> T:
        """The usual one, or now and then an odd one."""
        return self.choice(odd) if self.seldom() else usual

    def number(self, size: int = 4) -> int:
        """A signed number of so many bytes."""
        return int.from_bytes(bytes(self.byte() for _ in range(size)), "big", signed=True)

    def raw(self, most: int = 40) -> bytes:
        """Some bytes."""
        length = self.below(most + 1)
        at, self._at = self._at, min(self._at + length, len(self._data))
        return self._data[at : self._at]

    def text(self, most: int = 40) -> str:
        """Some text: every character can come, even half of a pair."""
        return self.raw(most).decode("utf-8", "surrogateescape" if self.flag(8) else "replace")

    def mutated(self, data: bytes) -> bytes:
        """The bytes with a few of them changed, put in, or taken out."""
        found = bytearray(data)
        for _ in range(1 + self.below(4)):
            at = int.from_bytes(bytes((self.byte(), self.byte())), "big") % (len(found) + 1)
            match self.below(4):
                case 0:
                    del found[at:]
                case 1:
                    del found[at : at + 1 + self.below(8)]
                case 2:
                    found[at:at] = self.raw(8)
                case _:
                    found[at : at + 1] = bytes([self.byte()])
        return bytes(found)
