"""Pods as pairs of processes, with tiny real ones: `sh` as function and as proxy."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pathlib
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from autoscaler.fleet import Phase
from kn_cloudstate import pods as pods_module
from kn_cloudstate.manifests import LocalService
from kn_cloudstate.pods import BACKOFF_LAST, EARLY, LocalPods, backoff

LIMIT = 60.0
SLEEPS = "exec sleep 600"
STUBBORN = "trap '' TERM; echo here; while :; do sleep 0.05; done"


class Town:
    """Pods of one service, a clock that is set by hand, and the ends that were told."""

    def __init__(self, folder: pathlib.Path, function: str, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.now = folder, 100.0
        self.ended: list[str] = []
        service = LocalService(
            namespace="shop", name="cart", command=("sh", "-c", function), folder=folder, annotations={}, labels={},
            environment={"LEVEL": "7"}, container_concurrency=0, timeout_seconds=300, shards=8, passivation_timeout="30s",
        )  # fmt: skip
        self.pods = LocalPods(service, {"CLOUDSTATE_JOURNAL": "memory:"}, folder, lambda: self.now, self.ended.append)
        self.proxy = ["sh", "-c", proxy]
        spawn = pods_module._spawn

        async def small(command: Any, *rest: Any) -> asyncio.subprocess.Process:
            return await spawn(self.proxy if command[-1] == "stateful_proxy" else command, *rest)

        monkeypatch.setattr(pods_module, "_spawn", small)

    @property
    def names(self) -> list[str]:
        return [pod.name for pod in self.pods.pods()]

    def processes(self, name: str) -> tuple[Any, Any]:
        running = self.pods._running[name]
        return running.function, running.proxy

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    async def until(self, true: Callable[[], object], what: str) -> None:
        async with asyncio.timeout(LIMIT):
            while not true():
                await asyncio.sleep(0.01)
        assert true(), what


@pytest.fixture
async def town(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Town]]:
    """`town(function, proxy)` makes pods of two shell scripts; all are killed with the test."""
    made: list[Town] = []

    def make(function: str = SLEEPS, proxy: str = SLEEPS) -> Town:
        made.append(Town(tmp_path, function, proxy, monkeypatch))
        return made[-1]

    yield make
    for found in made:
        for name in found.names:
            found.pods.kill(name)
        await found.pods.close()


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def test_a_pod_is_two_processes_with_what_they_need(town: Any) -> None:
    says = 'echo "$LEVEL $HOST $PORT in $(pwd)"; echo "to $CLOUDSTATE_USER_FUNCTION"; '
    here = town(says + SLEEPS, 'echo "$CLOUDSTATE_POD of $CLOUDSTATE_SERVICE at $CLOUDSTATE_USER_FUNCTION with $CLOUDSTATE_JOURNAL"; ' + SLEEPS)
    await here.pods.start()
    await here.pods.start()
    assert here.names == ["cart-00001-0001", "cart-00001-0002"]
    assert {(pod.phase, pod.started_at) for pod in here.pods.pods()} == {(Phase.STARTING, 100.0)}
    await here.until(lambda: here.log(here.names[1]).count("\n") == 3, "both have spoken")
    lines = here.log(here.names[1]).splitlines()
    (proxy,) = [line for line in lines if " of shop/cart at " in line]
    address = proxy.split()[4]
    assert proxy == f"cart-00001-0002 of shop/cart at {address} with memory:"
    assert f"7 127.0.0.1 {address.partition(':')[2]} in {here.folder}" in lines
    assert here.pods.started_total == 2


async def test_the_function_outlives_the_proxy_that_drains(town: Any) -> None:
    rest = "; exit' TERM; while :; do sleep 0.05; done"
    here = town(f"trap 'echo function{rest}", f"trap 'sleep 0.2; echo proxy{rest}")
    await here.pods.start()
    (name,) = here.names
    processes = here.processes(name)
    await here.until(lambda: all(trapped(p.pid) for p in processes), "both await their signal")
    await here.pods.stop(name)
    assert [pod.phase for pod in here.pods.pods()] == [Phase.STOPPING]
    await here.pods.stop(name)
    await here.until(lambda: here.ended, "its end is told")
    assert (here.ended, here.names) == ([name], [])
    assert here.log(name).splitlines() == ["proxy", "function"]


def trapped(pid: int) -> bool:
    """The process has a handler for SIGTERM."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(
    ("function", "proxy", "says"),
    [
        ("echo no cart today; exit 3", SLEEPS, "its user function ended unasked with exit code 3, and the pod is taken down: no cart today (log: "),
        (SLEEPS, "echo error: journal gone >&2; exit 1", "its proxy ended unasked with exit code 1, and the pod is taken down: journal gone (log: "),
        ("kill -SEGV $$", SLEEPS, "its user function was ended by SIGSEGV, and the pod is taken down: it said nothing (log: "),
    ],
    ids=["function ends", "proxy ends", "function crashes"],
)
async def test_a_pod_ends_as_a_whole_and_says_why(town: Any, caplog: Any, function: str, proxy: str, says: str) -> None:
    here = town(function, proxy)
    with caplog.at_level(logging.WARNING):
        await here.pods.start()
        (name,) = here.names
        processes = here.processes(name)
        await here.until(lambda: here.ended, "its end is told")
    assert (here.ended, here.names) == ([name], [])
    assert not any(alive(process.pid) for process in processes)
    assert f"pod {name}: {says}{here.folder / name}.log)" in caplog.text


async def test_an_older_log_of_that_name_is_kept_and_not_mistaken_for_the_reason(town: Any, tmp_path: pathlib.Path, caplog: Any) -> None:
    (tmp_path / "cart-00001-0001.log").write_text("what an earlier run said\n")
    here = town("exit 1")
    await here.pods.start()
    await here.until(lambda: here.ended, "its end is told")
    assert "it said nothing (log: " in caplog.text
    assert here.log("cart-00001-0001") == "what an earlier run said\n"


async def test_a_pod_whose_log_was_put_away_ends_like_any_other(town: Any, caplog: Any) -> None:
    here = town("rm *.log; exit 3")
    await here.pods.start()
    (name,) = here.names
    processes = here.processes(name)
    await asyncio.wait([here.pods._running[name].ended])
    assert (here.ended, here.names) == ([name], [])
    assert not any(alive(process.pid) for process in processes)
    assert "exit code 3, and the pod is taken down: it said nothing (log: " in caplog.text


async def test_a_killed_pod_takes_both_processes_and_nobody_is_surprised(town: Any, caplog: Any) -> None:
    here = town(STUBBORN, STUBBORN)
    await here.pods.start()
    (name,) = here.names
    processes = here.processes(name)
    here.pods.kill(name)
    await here.until(lambda: here.ended == [name], "its end is told")
    assert [process.returncode for process in processes] == [-signal.SIGKILL, -signal.SIGKILL]
    assert not caplog.text


async def test_what_does_not_end_in_time_is_killed(town: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(pods_module, "STOP_LIMIT", 0.3)
    here = town(STUBBORN, "trap exit TERM; while :; do sleep 0.05; done")
    await here.pods.start()
    (name,) = here.names
    processes = here.processes(name)
    await here.until(lambda: "here" in here.log(name) and trapped(processes[1].pid), "both await their signal")
    await here.pods.stop(name)
    await here.until(lambda: here.ended == [name], "its end is told")
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 0], "the one that would not, and the one that ended when it was told to"


async def test_a_proxy_that_does_not_end_in_time_is_killed_as_well(town: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(pods_module, "STOP_LIMIT", 0.3)
    here = town("trap exit TERM; while :; do sleep 0.05; done", STUBBORN)
    await here.pods.start()
    (name,) = here.names
    processes = here.processes(name)
    await here.until(lambda: "here" in here.log(name) and trapped(processes[0].pid), "both await their signal")
    await here.pods.stop(name)
    await here.until(lambda: here.ended == [name], "its end is told")
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL]


async def test_close_ends_every_pod_even_stubborn_ones(town: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(pods_module, "STOP_LIMIT", 0.3)
    here = town(SLEEPS, STUBBORN)
    await here.pods.start()
    await here.pods.start()
    names = here.names
    await here.until(lambda: all("here" in here.log(name) for name in names), "both run")
    await here.pods.close()
    assert (sorted(here.ended), here.names) == (names, [])


async def test_stopping_what_is_not_there_does_nothing(town: Any) -> None:
    here = town()
    await here.pods.stop("cart-00001-0009")
    await here.pods.close()
    assert here.ended == []


@pytest.mark.parametrize(("failures", "seconds"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 4), (5, 8), (6, BACKOFF_LAST), (5000, BACKOFF_LAST)])
def test_how_long_the_next_pod_waits(failures: int, seconds: float) -> None:
    assert backoff(failures) == seconds


async def test_pods_that_cannot_run_are_replaced_ever_more_slowly(town: Any) -> None:
    here = town("exit 1")
    started = []
    for _ in range(60):
        await here.pods.start()
        started.append(here.pods.started_total)
        await here.until(lambda: not here.names, "the pod has ended")
        here.now += 0.5
    assert [started.index(n) / 2 for n in range(1, 8)] == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 25.5], "seconds at which each was started"


@pytest.mark.parametrize("how", ["ran for a while", "was stopped", "was killed"])
async def test_a_pod_that_could_run_ends_the_slowness(town: Any, how: str) -> None:
    here = town("while [ ! -e gate ]; do sleep 0.01; done")
    here.pods._failures = 5
    await here.pods.start()
    (name,) = here.names
    if how == "ran for a while":
        here.now += EARLY
        (here.folder / "gate").touch()
    elif how == "was stopped":
        await here.pods.stop(name)
    else:
        here.pods.kill(name)
    await here.until(lambda: not here.names, "the pod has ended")
    await here.pods.start()
    assert here.pods.started_total == 2


async def test_a_start_that_is_called_off_halfway_leaves_nothing(town: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here, made, halfway = town(), list[asyncio.subprocess.Process](), asyncio.Event()
    spawn = pods_module._spawn

    async def hangs(command: Any, *rest: Any) -> asyncio.subprocess.Process:
        if command[-1] == "stateful_proxy":
            halfway.set()
            await asyncio.Event().wait()
        made.append(await spawn(command, *rest))
        return made[-1]

    monkeypatch.setattr(pods_module, "_spawn", hangs)
    starting = asyncio.create_task(here.pods.start())
    async with asyncio.timeout(LIMIT):
        await halfway.wait()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        try:
            assert await made[0].wait() == -signal.SIGKILL
        finally:
            with contextlib.suppress(ProcessLookupError):
                made[0].kill()
    assert here.names == []


async def test_a_process_that_cannot_be_made_is_told_and_leaves_nothing(town: Any, caplog: Any) -> None:
    here = town('echo $$ > function.pid; ' + SLEEPS)
    here.proxy = ["/no/such/program"]
    with caplog.at_level(logging.WARNING):
        await here.pods.start()
    assert "pod cart-00001-0001: cannot be started: [Errno 2] No such file or directory: '/no/such/program'" in caplog.text
    assert (here.names, here.ended, here.pods.started_total) == ([], [], 0)
    pid = here.folder / "function.pid"
    await here.until(lambda: not pid.exists() or not pid.read_text() or not alive(int(pid.read_text())), "the function was ended")
