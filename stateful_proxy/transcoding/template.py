"""Path templates of `google.api.http`: `/` segments, variables, and a verb; parsed once, matched against paths as they were sent.

A path is percent-decoded exactly once, after it has been cut at its slashes; a plus sign is a plus sign.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_LITERAL = re.compile(r"[^/{}*:=]+")
_SLASH = re.compile("%2f", re.IGNORECASE)
ONE, REST = "*", "**"


class InvalidTemplate(Exception):
    """A template breaks a rule: says which, and at which character."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A field of the request, and the segments that it stands for: `[start, end)`."""

    field: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template. Segments are literals, decoded, or ONE or REST."""

    segments: tuple[str, ...]
    variables: tuple[Variable, ...]
    verb: str = ""

    @property
    def rank(self) -> tuple[tuple[int, ...], int]:
        """Sorts templates by how exact they are: literals before one segment before the rest, a verb before none."""
        kinds = tuple({ONE: 1, REST: 2}.get(segment, 0) for segment in self.segments)
        return (kinds, 0 if self.verb else 1)

    @property
    def literal(self) -> str | None:
        """The one path, as it is mostly written, of a template without variables, wildcards and verb; None for others. No template that is more
        exact fits that path."""
        path = "/" + "/".join(self.segments)
        exact = not self.verb and not any(self.rank[0]) and ":" not in path  # which could be another's verb
        return path if exact and self.match(path) is not None else None

    def match(self, path: str) -> dict[str, str] | None:
        """Values of the variables by field when the path (without query) fits; None when it does not."""
        if self.verb:
            head, colon, verb = path.rpartition(":")
            if not colon or unquote(verb) != self.verb or "/" in verb:
                return None
            path = head
        if not path.startswith("/"):
            return None
        parts = path[1:].split("/")
        if self.segments and self.segments[-1] == REST:
            if len(parts) < len(self.segments) - 1:
                return None
        elif len(parts) != len(self.segments):
            return None
        for segment, part in zip(self.segments, parts, strict=False):
            if segment == REST:
                break
            if (segment == ONE and not part) or (segment != ONE and unquote(part) != segment):
                return None
        return {variable.field: self._value(variable, parts) for variable in self.variables}

    def _value(self, variable: Variable, parts: list[str]) -> str:
        """A variable of several segments keeps its encoded slashes, so that they are told from real ones."""
        rest = variable.end == len(self.segments) and self.segments[-1] == REST
        taken = parts[variable.start :] if rest else parts[variable.start : variable.end]
        if variable.end - variable.start == 1 and not rest:
            return unquote(taken[0])
        return "/".join("%2F".join(unquote(piece) for piece in _SLASH.split(part)) for part in taken)


def parse(text: str) -> Template:
    """Read a template. InvalidTemplate says what is wrong and where."""
    return _Parser(text).template()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._segments: list[str] = []
        self._variables: list[Variable] = []

    def template(self) -> Template:
        if not self._text.startswith("/"):
            raise InvalidTemplate(f"Template must start with a slash at character 1 of '{self._text}'")
        while self._take("/"):
            self._segment(inside=False)
        verb = ""
        if self._take(":"):
            verb = self._text[self._at :]
            if not verb or not _LITERAL.fullmatch(verb):
                self._fail("A verb must be a literal")
            self._at = len(self._text)
        if self._at < len(self._text):
            self._fail(f"Unexpected {self._text[self._at]!r}")
        return Template(tuple(self._segments), tuple(self._variables), unquote(verb))

    def _segment(self, inside: bool) -> None:
        if self._segments and self._segments[-1] == REST:
            self._fail("** must be the last segment")
        if self._take("**"):
            self._segments.append(REST)
        elif self._take("*"):
            self._segments.append(ONE)
        elif self._take("{"):
            if inside:
                self._fail("Variables must not be nested", back=1)
            self._variable()
        elif match := _LITERAL.match(self._text, self._at):
            self._at = match.end()
            self._segments.append(unquote(match[0]))
        else:
            self._fail("A segment is missing")

    def _variable(self) -> None:
        match = _FIELD.match(self._text, self._at)
        if match is None:
            self._fail("A variable must name a field")
        assert match is not None
        name, start = match[0], len(self._segments)
        if any(variable.field == name for variable in self._variables):
            self._fail("Duplicate path in template")
        self._at = match.end()
        if self._take("="):
            self._segment(inside=True)
            while self._take("/"):
                self._segment(inside=True)
        else:
            self._segments.append(ONE)
        if not self._take("}"):
            self._fail("A variable must end with '}'")
        self._variables.append(Variable(name, start, len(self._segments)))

    def _take(self, token: str) -> bool:
        if not self._text.startswith(token, self._at):
            return False
        self._at += len(token)
        return True

    def _fail(self, what: str, back: int = 0) -> None:
        raise InvalidTemplate(f"{what} at character {self._at + 1 - back} of '{self._text}'")
