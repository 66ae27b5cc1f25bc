"""A mistake of the activator's own costs the one request that it was made at."""

from __future__ import annotations

from typing import Any

import pytest

from activator import app
from activator.app import MISTAKE, Activator
from activator.settings import settings_of
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Status


class Recorder:
    """A transport that takes answers and timers."""

    def __init__(self) -> None:
        self.answers: dict[int, tuple[int, str]] = {}
        self.timers: list[Any] = []

    def finish(self, call: int, status: int, text: str = "") -> None:
        self.answers[call] = status, text

    def respond(self, call: int, status: int, headers: Any, body: bytes) -> None:
        self.answers[call] = status, body.decode()

    def connect(self, target: str) -> int:
        return 1

    def after(self, delay: float, callback: Any) -> int:
        self.timers.append(callback)
        return len(self.timers)


class Mistaken:
    """A router that makes a mistake at every event with an even number, and each time it looks for what has expired."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def on_event(self, event: api.Event) -> None:
        if event[1] % 2 == 0:
            raise RuntimeError("a mistake")
        self.taken.append(event[1])

    def expire(self, now: float) -> None:
        raise RuntimeError("a mistake")


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(app.transports, "create", lambda name: recorder)
    return recorder


@pytest.fixture
def activator(transport: Recorder) -> Any:
    made: Any = Activator(settings_of({"CLOUDSTATE_COORDINATOR": "leader:8101"}))
    made._router = Mistaken()
    return made


def test_a_request_at_which_the_activator_errs_is_answered_and_the_others_go_on(activator: Any, transport: Recorder) -> None:
    request = ("GET", "/", (b"", b""))
    activator._on_batch(
        [(api.CALL, 2, b"", ()), (api.CALL, 3, b"", ()), (api.HTTP, 4, b"", request), (api.FORWARDED, 6, b"", ()), (api.HTTP, 5, b"", request)]
    )
    assert transport.answers == {2: (Status.INTERNAL, MISTAKE), 4: (500, MISTAKE)}
    assert activator._router.taken == [3, 5]
    assert b"cloudstate_activator_errors_total 3\n" in activator._admin.answer("/metrics")[2]


def test_what_is_held_expires_also_after_a_mistake(activator: Any, transport: Recorder) -> None:
    with pytest.raises(RuntimeError):
        activator._expire()
    assert transport.timers == [activator._expire], "the next look is due"
