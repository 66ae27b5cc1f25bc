"""A mistake of the proxy's own costs the one call that it was made at."""

from __future__ import annotations

from typing import Any

import pytest

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Status
from stateful_proxy import app
from stateful_proxy.app import MISTAKE, Proxy
from stateful_proxy.settings import settings_of


class Recorder:
    """A transport that takes answers."""

    def __init__(self) -> None:
        self.answers: dict[int, tuple[int, str]] = {}

    def finish(self, call: int, status: int, text: str = "") -> None:
        self.answers[call] = status, text

    def respond(self, call: int, status: int, headers: Any, body: bytes) -> None:
        self.answers[call] = status, body.decode()


class Mistaken:
    """What serves makes a mistake at every event with an even number."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.batch: Any = self

    def take(self, event: api.Event) -> bool:
        if event[1] % 2 == 0:
            raise RuntimeError("a mistake")
        self.taken.append(event[1])
        return True

    def flush(self) -> None:
        self.taken.append(0)


def test_a_call_at_which_the_proxy_errs_is_answered_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = Recorder()
    monkeypatch.setattr(app.transports, "create", lambda name: transport)
    proxy: Any = Proxy(settings_of({}))
    serving = proxy._serving = Mistaken()
    request = ("POST", "/a", (b"", b"", b""))
    proxy._on_batch(
        [(api.CALL, 2, b"", ()), (api.CALL, 3, b"", ()), (api.HTTP, 4, b"", request), (api.STREAM_MESSAGE, 6, b"", None), (api.HTTP, 5, b"", request)]
    )
    assert transport.answers == {2: (Status.INTERNAL, MISTAKE), 4: (500, MISTAKE)}
    assert (serving.taken, proxy.errors) == ([3, 5, 0], 3)
