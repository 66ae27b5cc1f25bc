"""Elections on a real API server: processes that are frozen, ended and replaced, and never two leaders at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pathlib
import signal
import sys
import time
from datetime import datetime

from cloudstate_core.kube import kinds
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.leader import DURATION, RETRY
from envtest.steps import until

ROOT = pathlib.Path(__file__).parents[2]
REPLICA = """
import asyncio, contextlib, signal, sys, time
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.leader import Election

kubeconfig, namespace, identity = sys.argv[1:]

async def work():
    try:
        while True:
            print("acts", time.monotonic(), flush=True)
            await asyncio.sleep(0.05)
    finally:
        print("ended", time.monotonic(), flush=True)

async def main():
    client = await KubeClient.connect(kubeconfig)
    task = asyncio.ensure_future(Election(client, namespace, "lead", identity).run(work))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await client.close()

asyncio.run(main())
"""


class Replica:
    """A process that takes part in an election and says when it acts as the leader."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.acts: list[float] = []
        self.ends: list[float] = []

    async def start(self, namespace: str) -> None:
        arguments = [sys.executable, "-c", REPLICA, os.environ["CLOUDSTATE_ENVTEST"], namespace, self.identity]
        self.process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
        self.reader = asyncio.ensure_future(self.read())

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            what, at = line.split()
            (self.acts if what == b"acts" else self.ends).append(float(at))

    def acts_after(self, moment: float) -> bool:
        return bool(self.acts) and self.acts[-1] > moment

    async def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        await asyncio.wait_for(self.process.wait(), 60)
        await self.reader


async def test_one_of_three_processes_leads_also_when_the_leader_is_frozen(kube: KubeClient, namespace: str) -> None:
    replicas = [Replica(f"r{n}") for n in range(3)]
    for replica in replicas:
        await replica.start(namespace)
    try:
        await until(lambda: any(replica.acts for replica in replicas), "a leader")
        (first,) = [replica for replica in replicas if replica.acts]
        others = [replica for replica in replicas if replica is not first]
        await until(lambda: first.acts[-1] - first.acts[0] > 2 * RETRY, "a leader that goes on")
        first.process.send_signal(signal.SIGSTOP)
        renewed = datetime.fromisoformat((await kube.get(kinds.LEASE, namespace, "lead")).spec.renew_time or "").timestamp()
        renewed += time.monotonic() - time.time()
        await until(lambda: any(replica.acts for replica in others), "another leader")
        (second,) = [replica for replica in others if replica.acts]
        assert second.acts[0] - renewed > DURATION - 1, "it waited for the lease to end"
        thawed = time.monotonic()
        first.process.send_signal(signal.SIGCONT)
        await until(lambda: first.ends, "the end of the frozen leader's work")
        late = [at for at in first.acts if thawed < at <= first.ends[0]]
        assert len(late) <= 1, "one step may have been under way"
        count = len(second.acts)
        await until(lambda: len(second.acts) > count + 40, "the second leader goes on")
        second.process.send_signal(signal.SIGTERM)
        left = time.monotonic()
        await until(lambda: any(replica.acts_after(left) for replica in (first, *others) if replica is not second), "a third leader")
        await second.process.wait()
        third = min(at for replica in (first, *others) if replica is not second for at in replica.acts if at > left)
        assert third - left < DURATION, "a leader that goes in order hands over at once"
    finally:
        for replica in replicas:
            with contextlib.suppress(ProcessLookupError):
                await replica.end()
    # the first may be the third as well; those that are left at the end may lead for a moment once the third has gone
    terms = sorted((at, replica.identity) for replica in replicas for at in replica.acts if at <= third and not (replica is first and at in late))
    changes = [pair for pair in itertools.pairwise(terms) if pair[0][1] != pair[1][1]]
    assert len(changes) == 2, f"leaders took turns more often than led: {changes}"
