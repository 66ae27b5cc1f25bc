"""Settings from environment variables: each reader takes a name and a default, and every error names the variable, its value and the rule."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cloudstate_core.durations import parse_duration
from cloudstate_core.process import SettingsError


class Environment:
    """Reads variables; SettingsError on the first one that is wrong."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def text(self, name: str, default: str = "") -> str:
        """A text that must not be empty."""
        value = self._variables.get(name, default)
        if not value:
            raise SettingsError(f"{name}: must be set")
        return value

    def port(self, name: str, default: int) -> int:
        """A TCP port; 0 takes a free one."""
        value = self._variables.get(name, str(default))
        if not value.isdecimal() or int(value) > 65535:
            raise SettingsError(f"{name}={value!r}: must be a port from 0 to 65535")
        return int(value)

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number within bounds."""
        value = self._variables.get(name, str(default))
        if not value.isdecimal() or not low <= int(value) <= high:
            raise SettingsError(f"{name}={value!r}: must be a whole number from {low} to {high}")
        return int(value)

    def flag(self, name: str) -> bool:
        """true or false; false when it is not there."""
        value = self._variables.get(name, "false")
        if value not in ("true", "false"):
            raise SettingsError(f"{name}={value!r}: must be true or false")
        return value == "true"

    def seconds(self, name: str, default: float) -> float:
        """A number of seconds, 0 or more."""
        value = self._variables.get(name, str(default))
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not 0 <= found < math.inf:
            raise SettingsError(f"{name}={value!r}: must be seconds, 0 or more")
        return found

    def duration(self, name: str, default: str, low: float = 0.0, high: float = math.inf) -> float:
        """A duration such as 500ms or 2s, in seconds, within bounds."""
        value = self._variables.get(name, default)
        try:
            found = parse_duration(value)
        except ValueError as error:
            raise SettingsError(f"{name}={value!r}: must be a duration: {error}") from error
        if not low <= found <= high:
            rule = f"at least {low:g}s" if high == math.inf else f"from {low:g}s to {high:g}s"
            raise SettingsError(f"{name}={value!r}: must be {rule}")
        return found
