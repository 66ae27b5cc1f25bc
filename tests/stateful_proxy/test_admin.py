"""The admin port's pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from cloudstate_core.transport import api
from stateful_proxy import app
from stateful_proxy.admin import Admin, exposition
from stateful_proxy.settings import settings_of


class Pages:
    """A transport that keeps the last answer."""

    def __init__(self) -> None:
        self.problem = ""
        transport: Any = self
        self.admin = Admin(transport, lambda: self.problem, lambda: {"a_total": 2}, {"/shards": lambda: {"owned": {"1": 2}}})

    def respond(self, call: int, status: int, headers: Sequence[api.Header], body: bytes) -> None:
        self.answer = (status, body)

    def get(self, target: str) -> tuple[int, bytes]:
        self.admin.on_event((api.HTTP, 1, b"", ("GET", target, ())))
        return self.answer


@pytest.fixture
def pages() -> Pages:
    return Pages()


def test_readiness_tells_the_problem(pages: Pages) -> None:
    assert pages.get("/ready") == (200, b"ready\n")
    pages.problem = "journal: is not open yet"
    assert pages.get("/ready?verbose") == (503, b"journal: is not open yet\n")
    assert pages.get("/alive")[0] == 200


def test_views_and_metrics(pages: Pages) -> None:
    assert json.loads(pages.get("/shards")[1]) == {"owned": {"1": 2}}
    assert pages.get("/metrics") == (200, b"# TYPE a_total counter\na_total 2\n")


def test_another_path_names_those_there_are(pages: Pages) -> None:
    assert pages.get("/x") == (404, b"paths: /alive /ready /metrics /shards\n")


def test_large_counters_keep_every_digit() -> None:
    assert b"n_total 123456789\n" in exposition({"n_total": 123_456_789})


def test_a_proxy_that_has_not_begun_is_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its admin port may be asked before anything else has happened."""
    monkeypatch.setattr(app.transports, "create", lambda name: object())
    assert app.Proxy(settings_of({})).problem() == "starting"
