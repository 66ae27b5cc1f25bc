"""Queries against a real HTTP server that answers in Prometheus' format; what is no single number is no value."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

import pytest
from aiohttp import web

from autoscaler.prometheus import Queries, QueryError, Source, value_of
from autoscaler.revision_scaler import RevisionScaler
from autoscaler.settings import effective
from cloudstate_core.policy import parse_policy
from tests.autoscaler.cancelling import ends_all_the_same

LIMIT = 60.0


def vector(*values: str) -> list[dict[str, Any]]:
    return [{"metric": {"pod": str(n)}, "value": [1000.5, value]} for n, value in enumerate(values)]


@pytest.mark.parametrize(("result", "value"), [(vector("7"), 7.0), (vector("0.25"), 0.25), ([1000.5, "12"], 12.0)])
def test_a_value(result: Any, value: float) -> None:
    assert value_of(result) == value


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ([], "0 series"),
        (vector("1", "2"), "2 series"),
        (vector("NaN"), "finite"),
        (vector("+Inf"), "finite"),
        ([1000.5, "text"], "not one number"),
        ([{"metric": {}, "values": [[1000, "1"], [1001, "2"]]}], "not one number"),
        (None, "not one number"),
    ],
)
def test_no_value(result: Any, says: str) -> None:
    with pytest.raises(QueryError, match=says):
        value_of(result)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause of the machine, and no first import of the client library, is taken for a silent server."""
    monkeypatch.setattr("autoscaler.prometheus.TIMEOUT", LIMIT)


class Server:
    """Answers queries as the test says: a result, a status, or never."""

    def __init__(self) -> None:
        self.answer: Any = vector("7")
        self.status, self.hang, self.over = 200, False, asyncio.Event()
        self.asked: list[str] = []
        self.url = ""

    async def query(self, request: web.Request) -> web.Response:
        self.asked.append(request.query["query"])
        if self.hang:
            await self.over.wait()
        if self.status != 200:
            return web.json_response({"status": "error", "errorType": "bad_data", "error": "parse error"}, status=self.status)
        return web.json_response({"status": "success", "data": {"resultType": "vector", "result": self.answer}})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found = Server()
    app = web.Application()
    app.router.add_get("/api/v1/query", found.query)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    found.over.set()
    await runner.cleanup()


async def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"not reached: {what}"
        await asyncio.sleep(0.01)


async def test_a_query_is_asked_again_and_again_and_its_values_are_told(server: Server) -> None:
    told: list[tuple[Source, float]] = []
    queries = Queries(lambda source, value: told.append((source, value)), 0.01)
    source = ("Prometheus", server.url, 'sum(depth{q="a b"})')
    queries.follow([source])
    await until(lambda: len(told) >= 2, "two values")
    assert set(told) == {(source, 7.0)}
    assert set(server.asked) == {'sum(depth{q="a b"})'}
    server.answer = vector("9")
    await until(lambda: (source, 9.0) in told, "the new value")
    queries.follow([])
    await queries.close()


@pytest.mark.parametrize("failure", [{"status": 400}, {"status": 503}, {"answer": []}, {"answer": vector("1", "2")}, {"answer": "x"}])
async def test_a_failing_query_gives_nothing_and_is_told_once(
    server: Server, failure: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "autoscaler.prometheus")
    told: list[float] = []
    queries = Queries(lambda source, value: told.append(value), 0.01)
    for name, value in failure.items():
        setattr(server, name, value)
    queries.follow([("Prometheus", server.url, "q")])
    await until(lambda: len(server.asked) >= 4, "four questions")
    assert told == []
    assert [record.message.partition(": ")[0] for record in caplog.records] == [f"metric 'q' of {server.url}"]
    server.status, server.answer = 200, vector("3")
    await until(lambda: told, "a value")
    await until(lambda: len(caplog.records) == 2, "the end of the failure is told")
    assert caplog.records[1].message.endswith("has a value again")
    await queries.close()


async def test_a_server_that_is_away_or_silent_gives_nothing_in_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoscaler.prometheus.TIMEOUT", 0.2)
    told: list[tuple[Source, float]] = []
    away, silent, good = (("Prometheus", url, "q") for url in ("http://127.0.0.1:1", server.url, server.url + "/"))
    server.hang = True
    queries = Queries(lambda source, value: told.append((source, value)), 0.01)
    queries.follow([away, silent])
    await until(lambda: server.asked, "the silent server was asked")
    server.hang = False
    queries.follow([away, good])
    await until(lambda: told, "a value of the good one")
    assert {source for source, _ in told} == {good}
    await queries.close()


QUEUE = {"type": "Prometheus", "target": 10, "query": "q", "server": "http://p"}
SOURCE = ("Prometheus", "http://p", "q")


def scaler(*metrics: dict[str, Any]) -> RevisionScaler:
    document = {
        "apiVersion": "autoscaling.cloudstate.io/v1alpha1",
        "kind": "AutoscalingPolicy",
        "metadata": {"name": "p"},
        "spec": {"metrics": list(metrics), "windows": {"stable": "6s"}, "scaleToZero": {"gracePeriod": "1s"}},
    }
    return RevisionScaler(effective({}, parse_policy(document)))


def decide(subject: RevisionScaler, seconds: range, pods: int, value: float | None) -> int:
    """The pods after some seconds without requests; `value` = what the query gives in each, None: nothing."""
    for now in seconds:
        subject.record(now, 0.0, 0.0)
        if value is not None:
            subject.record_external(now, value, SOURCE)
        pods = subject.decide(now, pods, pods).replicas_wanted
    return pods


def test_a_metric_without_data_holds_what_it_asked_for() -> None:
    subject = scaler({"type": "Concurrency", "target": 1}, QUEUE)
    assert decide(subject, range(20), 1, 50.0) == 5
    assert decide(subject, range(20, 400), 5, None) == 5
    assert decide(subject, range(400, 420), 5, 20.0) == 2
    assert decide(subject, range(420, 460), 2, 0.0) == 0


def test_another_metric_may_ask_for_more_meanwhile() -> None:
    subject = scaler({"type": "Concurrency", "target": 1}, QUEUE)
    decide(subject, range(20), 1, 20.0)
    for now in range(20, 40):
        subject.record(now, 8.0, 0.0)
    assert subject.decide(39, 2, 2).desired == 8


@pytest.mark.parametrize("first", [None, 0.0])
def test_the_last_pod_stays_while_there_is_no_data(first: float | None) -> None:
    subject = scaler({"type": "Concurrency", "target": 1}, QUEUE)
    assert decide(subject, range(1), 1, first) == 1
    assert decide(subject, range(1, 300), 1, None) == 1


def test_a_fleet_that_was_never_measured_stays_as_it_is() -> None:
    assert decide(scaler(QUEUE), range(300), 4, None) == 4


def test_a_queue_brings_a_pod_from_zero() -> None:
    subject = scaler(QUEUE)
    assert decide(subject, range(30), 0, 0.0) == 0
    assert subject.resting
    assert decide(subject, range(30, 31), 0, 25.0) == 3


def test_each_query_feeds_its_own_metric() -> None:
    other = {**QUEUE, "query": "r", "target": 1}
    subject = scaler(QUEUE, other)
    assert sorted(subject.queries) == [SOURCE, ("Prometheus", "http://p", "r")]
    subject.record_external(0, 5.0, ("Prometheus", "http://p", "r"))
    subject.record_external(0, 5.0, SOURCE)
    assert subject.decide(0, 1, 1).desired == 5


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancellation_is_not_lost_when_a_value_comes_in_that_moment(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answer: Future[float] = Future()
    monkeypatch.setattr("autoscaler.prometheus._THREADS", Answering(answer))
    queries = Queries(lambda source, value: None, interval=1000.0)
    queries.follow([("Prometheus", "http://nowhere", "up")])
    (running,) = queries._following.values()
    assert await ends_all_the_same(running, lambda: answer.set_result(1.0), turns)


class Answering:
    """Stands where the threads stand that ask; what they hear is the test's."""

    def __init__(self, answer: Future[float]) -> None:
        self.answer = answer

    def submit(self, *_: Any) -> Future[float]:
        return self.answer
