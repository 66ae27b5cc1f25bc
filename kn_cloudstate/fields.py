"""Fields of a YAML document that somebody wrote by hand: each knows its path, and tells what is wrong with it instead of raising.

A field that is missing or wrong reads as its default, so that reading goes on and everything that is wrong is told at once; the caller
looks at what was told before it uses what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class Field:
    """One value at `path`; `tell` takes each error as `<path>: <what, and which rule>`."""

    def __init__(self, value: Any, path: str, tell: Callable[[str], None]) -> None:
        self.value, self.path, self._tell = value, path, tell

    def __getitem__(self, key: str) -> Field:
        """A field of an object; of what is no object, a missing one."""
        return Field(self.object().get(key), f"{self.path}.{key}" if self.path else key, self._tell)

    def wrong(self, rule: str) -> None:
        """Tell that the value breaks a rule."""
        self._tell(f"{self.path}: {self.value!r} {rule}" if self.value is not None else f"{self.path}: {rule}")

    def object(self) -> Mapping[str, Any]:
        """The value as an object; {} when missing or wrong."""
        if self.value is None or isinstance(self.value, dict):
            return self.value or {}
        self.wrong("must be an object")
        self.value = None
        return {}

    def items(self) -> list[Field]:
        """The value as a list; [] when missing or wrong."""
        if self.value is not None and not isinstance(self.value, list):
            self.wrong("must be a list")
            self.value = None
        return [Field(item, f"{self.path}[{n}]", self._tell) for n, item in enumerate(self.value or ())]

    def text(self, default: str = "") -> str:
        """The value as a text; `default` when missing or wrong."""
        if self.value is None or isinstance(self.value, str):
            return default if self.value is None else self.value
        self.wrong("must be a text: put it in quotes" if isinstance(self.value, bool | int | float) else "must be a text")
        return default

    def texts(self) -> dict[str, str]:
        """The value as an object whose values are all texts, such as labels; what is wrong is left out."""
        found = {}
        for key, value in self.object().items():
            if isinstance(key, str) and isinstance(value, str):
                found[key] = value
            else:
                quoted = isinstance(value, bool | int | float)
                self._tell(f"{self.path}: {key}: {value!r} must be a text{': put it in quotes' if quoted else ''}")
        return found

    def whole(self, default: int, low: int, high: int) -> int:
        """The value as a whole number; `default` when missing or wrong."""
        if self.value is None:
            return default
        if isinstance(self.value, int) and not isinstance(self.value, bool) and low <= self.value <= high:
            return self.value
        self.wrong(f"must be a whole number from {low} to {high}")
        return default
