"""A control loop against a real API server: a thousand objects, changed while it works."""

from __future__ import annotations

import asyncio
import time

import pytest

from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.controller import Controller
from envtest.steps import CONFIG, eventually, named


async def test_a_thousand_objects_reach_their_state(kube: KubeClient, namespace: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is changed again while the controller works; the last word of each must be carried out."""
    total = 1000
    cache = Cache(kube, CONFIG, namespace, labels="goal")

    async def reconcile(key: str) -> None:
        found = cache.get(*key.split("/"))
        if found is not None and found.data.get("done") != found.metadata.labels["goal"]:
            await kube.apply(CONFIG, namespace, found.metadata.name, {"data": {"done": found.metadata.labels["goal"]}}, "controller")

    loops = Controller("goals", reconcile, workers=16)
    cache.listen(lambda before, after: loops.queue.add((after or before).metadata.key))  # type: ignore[union-attr]
    some = asyncio.Semaphore(16)

    async def user(n: int) -> None:
        async with some:
            await kube.create(CONFIG, namespace, named(f"c{n}", metadata={"labels": {"goal": "first"}}))
        if n % 5 == 0:
            async with some:
                await kube.merge(CONFIG, namespace, f"c{n}", {"metadata": {"labels": {"goal": "second"}}})

    began = time.monotonic()
    running = [asyncio.ensure_future(cache.run()), asyncio.ensure_future(loops.run())]
    try:
        await asyncio.gather(*(user(n) for n in range(total)))
        made = time.monotonic()

        async def reached() -> int:
            items, _ = await kube.list(CONFIG, namespace, labels="goal")
            return sum(item.data.get("done") == ("first" if int(item.metadata.name[1:]) % 5 else "second") for item in items)

        await eventually(reached, lambda count: count == total, "every object in its state", 200)
        assert not any(task.done() for task in running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    with capsys.disabled():
        spent = time.monotonic() - began
        print(f"\n{total} objects made in {made - began:.1f} s, all reconciled after {spent:.1f} s: {loops.done_total / spent:.0f} runs/s")
