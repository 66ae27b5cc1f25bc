"""Probing new pods over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from autoscaler.cluster.prober import HEADERS, Prober
from kn_cloudstate.ports import free_port

Answer = Callable[[web.Request], Awaitable[web.Response]]


class QueueProxy:
    """Answers as `answer` says."""

    def __init__(self) -> None:
        self.requests: list[dict[str, str]] = []
        self.text, self.status, self.delay = "queue", 200, 0.0

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append(dict(request.headers))
        await asyncio.sleep(self.delay)
        return web.Response(text=self.text, status=self.status)


@pytest.fixture
async def pod() -> QueueProxy:
    return QueueProxy()


@pytest.fixture
async def address(pod: QueueProxy) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/", pod.handle)
    async with TestServer(app) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture
async def passed() -> list[str]:
    return []


@pytest.fixture
async def prober(passed: list[str]) -> AsyncIterator[Prober]:
    made = Prober(passed.append)
    yield made
    await made.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_pod_that_serves_passes_once(
    pod: QueueProxy, address: str, prober: Prober, passed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoscaler.cluster.prober.LIMIT", 60.0)  # an answer that a pause makes late would be asked for again
    for _ in range(3):
        prober.follow("a", address)
    await until(lambda: passed == ["a"])
    count = len(pod.requests)
    prober.follow("b", address)
    await until(lambda: passed == ["a", "b"])
    assert (count, len(pod.requests)) == (1, 2)
    assert HEADERS.items() <= pod.requests[0].items()


@pytest.mark.parametrize(("text", "status", "delay"), [("queue", 503, 0), ("queue", 200, 2.0), ("hello", 200, 0), ("queue and more", 200, 0)])
async def test_a_pod_passes_only_with_queue_proxy_s_own_answer(
    pod: QueueProxy, address: str, prober: Prober, passed: list[str], text: str, status: int, delay: float
) -> None:
    pod.text, pod.status, pod.delay = text, status, delay
    prober.follow("a", address)
    await until(lambda: len(pod.requests) >= 3)
    assert passed == []
    pod.text, pod.status, pod.delay = "queue", 200, 0.0
    await until(lambda: passed == ["a"])


async def test_a_pod_that_does_not_listen_yet_is_asked_until_it_does(
    pod: QueueProxy, prober: Prober, passed: list[str]
) -> None:
    port = free_port()  # which nobody's outgoing connection takes meanwhile, not even the prober's own
    prober.follow("a", f"127.0.0.1:{port}")
    app = web.Application()
    app.router.add_get("/", pod.handle)
    async with TestServer(app, port=port):
        await until(lambda: passed == ["a"])


async def test_a_pod_that_is_gone_is_asked_no_more(pod: QueueProxy, address: str, prober: Prober, passed: list[str]) -> None:
    pod.status = 503
    prober.follow("a", address)
    await until(lambda: bool(pod.requests))
    prober.forget("a")
    prober.forget("a")
    pod.status = 200
    other = QueueProxy()
    other.status = 503
    app = web.Application()
    app.router.add_get("/", other.handle)
    async with TestServer(app) as server:
        prober.follow("b", f"127.0.0.1:{server.port}")
        await until(lambda: len(other.requests) >= 4)  # several intervals, in which one who was still asked would have passed
    assert passed == []


async def test_a_callback_may_forget_the_pod(pod: QueueProxy, address: str) -> None:
    passed: list[str] = []

    def on_pass(name: str) -> None:
        prober.forget(name)
        passed.append(name)

    prober = Prober(on_pass)
    prober.follow("a", address)
    await until(lambda: passed == ["a"])
    prober.follow("a", address)
    await until(lambda: passed == ["a", "a"])
    await prober.close()


async def test_nothing_begins_after_the_end(address: str, prober: Prober, passed: list[str]) -> None:
    await prober.close()
    prober.follow("a", address)
    assert not prober._tasks
