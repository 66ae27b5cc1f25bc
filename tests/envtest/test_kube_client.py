"""The Kubernetes client against a real API server: every kind of call, caches across restarts and compaction, elections, a thousand objects."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from typing import Any

import aiohttp
import pytest

from cloudstate_core.kube import client as client_module
from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import Conflict, Gone, KubeError, NotFound
from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.controller import Controller
from cloudstate_core.kube.events import Recorder
from cloudstate_core.kube.leader import DURATION, RETRY
from envtest.steps import eventually

CONFIG = kinds.CONFIG_MAP
ROOT = pathlib.Path(__file__).parents[2]


def named(name: str, **body: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, **body.pop("metadata", {})}, **body}


async def fill(kube: KubeClient, namespace: str, count: int, prefix: str = "c") -> None:
    """Many ConfigMaps, some at a time."""
    some = asyncio.Semaphore(32)

    async def one(n: int) -> None:
        async with some:
            await kube.create(CONFIG, namespace, named(f"{prefix}{n}", data={"n": str(n)}))

    await asyncio.gather(*(one(n) for n in range(count)))


# Calls --------------------------------------------------------------------------------------------------------------------


async def test_objects_are_made_read_replaced_and_deleted(kube: KubeClient, namespace: str) -> None:
    made = await kube.create(CONFIG, namespace, named("a", data={"x": "1"}))
    with pytest.raises(Conflict, match="AlreadyExists"):
        await kube.create(CONFIG, namespace, named("a"))
    assert await kube.get(CONFIG, namespace, "a") == made
    version = {"resourceVersion": made.metadata.resource_version}
    changed = await kube.replace(CONFIG, namespace, "a", named("a", metadata=version, data={"y": "2"}))
    assert changed.data == {"y": "2"}
    with pytest.raises(Conflict, match="object has been modified"):
        await kube.replace(CONFIG, namespace, "a", named("a", metadata=version, data={}))
    await kube.delete(CONFIG, namespace, "a")
    await kube.delete(CONFIG, namespace, "a")
    with pytest.raises(NotFound, match="NotFound"):
        await kube.get(CONFIG, namespace, "a")
    with pytest.raises(KubeError) as caught:
        await kube.create(CONFIG, namespace, named("Not A Name"))
    assert (caught.value.status, caught.value.reason) == (422, "Invalid")


async def test_applied_fields_belong_to_their_manager(kube: KubeClient, namespace: str) -> None:
    await kube.apply(CONFIG, namespace, "a", {"metadata": {"labels": {"by": "one"}}, "data": {"one": "1", "shared": "1"}}, "one")
    await kube.apply(CONFIG, namespace, "a", {"data": {"two": "2"}}, "two")
    with pytest.raises(Conflict, match="shared"):
        await kube.apply(CONFIG, namespace, "a", {"data": {"two": "2", "shared": "2"}}, "two", force=False)
    taken = await kube.apply(CONFIG, namespace, "a", {"data": {"two": "2", "shared": "2"}}, "two")
    assert taken.data == {"one": "1", "shared": "2", "two": "2"}
    left = await kube.apply(CONFIG, namespace, "a", {"data": {}}, "one")
    assert (left.data, left.metadata.labels) == ({"shared": "2", "two": "2"}, {})


async def test_merged_fields_change_and_go(kube: KubeClient, namespace: str) -> None:
    await kube.create(CONFIG, namespace, named("a", data={"x": "1", "y": "1"}))
    merged = await kube.merge(CONFIG, namespace, "a", {"data": {"x": None, "z": "2"}})
    assert merged.data == {"y": "1", "z": "2"}


async def test_replicas_are_set_through_the_scale_part(kube: KubeClient, namespace: str) -> None:
    pod = {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "dev.local/none"}]}}
    await kube.create(kinds.DEPLOYMENT, namespace, named("a", spec={"selector": {"matchLabels": {"app": "a"}}, "template": pod}))
    await kube.scale(kinds.DEPLOYMENT, namespace, "a", 7)
    scaled = await kube.get(kinds.DEPLOYMENT, namespace, "a")
    assert scaled.spec.replicas == 7
    with pytest.raises(NotFound):
        await kube.scale(kinds.DEPLOYMENT, namespace, "b", 1)


async def test_status_is_written_by_itself(kube: KubeClient, namespace: str) -> None:
    spec = {"protocolType": "h2c", "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}
    made = await kube.create(kinds.POD_AUTOSCALER, namespace, named("a", spec=spec, status={"desiredScale": 9}))
    assert made.status.desired_scale is None
    status = {"serviceName": "a", "metricsServiceName": "b", "desiredScale": 3, "conditions": [{"type": "Ready", "status": "True"}]}
    body = {"spec": {"protocolType": "http1"}, "status": status}
    for changed in (
        await kube.merge(kinds.POD_AUTOSCALER, namespace, "a", body, "status"),
        await kube.apply(kinds.POD_AUTOSCALER, namespace, "a", {"status": status}, "me", "status"),
    ):
        assert (changed.status.desired_scale, changed.spec.protocol_type) == (3, "h2c")
        assert changed.metadata.generation == made.metadata.generation
        ready = objects.condition(changed.status.conditions, "Ready")
        assert ready is not None
        assert ready.status == "True"


async def test_lists_come_in_pages_and_by_selectors(kube: KubeClient, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LIMIT", 5)
    for n in range(12):
        await kube.create(CONFIG, namespace, named(f"c{n:02}", metadata={"labels": {"odd": str(n % 2), "third": str(n % 3)}}))
    found, version = await kube.list(CONFIG, namespace, labels="odd=1,third in (0, 1),!none")
    assert [item.metadata.name for item in found] == ["c01", "c03", "c07", "c09"]
    found, _ = await kube.list(CONFIG, namespace)
    assert [item.metadata.name for item in found if item.metadata.name != "kube-root-ca.crt"] == [f"c{n:02}" for n in range(12)]
    found, _ = await kube.list(CONFIG, namespace, fields="metadata.name=c04")
    assert [item.metadata.name for item in found] == ["c04"]
    assert version
    with pytest.raises(KubeError, match="unable to parse"):
        await kube.list(CONFIG, namespace, labels="!!")


async def test_a_watch_tells_what_enters_changes_and_leaves_a_selection(kube: KubeClient, namespace: str) -> None:
    _, version = await kube.list(CONFIG, namespace)
    await kube.create(CONFIG, namespace, named("other", data={}))
    await kube.create(CONFIG, namespace, named("a", metadata={"labels": {"in": "yes"}}))
    await kube.merge(CONFIG, namespace, "a", {"data": {"x": "1"}})
    await kube.merge(CONFIG, namespace, "a", {"metadata": {"labels": {"in": None}}})
    await kube.merge(CONFIG, namespace, "a", {"metadata": {"labels": {"in": "yes"}}})
    await kube.delete(CONFIG, namespace, "a")
    seen: list[tuple[str, dict[str, str]]] = []
    async with contextlib.aclosing(kube.watch(CONFIG, version, namespace, labels="in=yes")) as watch:
        async for kind, item in watch:
            assert item.metadata.name == "a"
            seen.append((kind, item.data))
            if len(seen) == 5:
                break
    assert seen == [("ADDED", {}), ("MODIFIED", {"x": "1"}), ("DELETED", {"x": "1"}), ("ADDED", {"x": "1"}), ("DELETED", {"x": "1"})]


async def test_a_watch_learns_by_bookmarks_that_it_is_up_to_date(kube: KubeClient, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a kind whose empty objects are full of nulls; changes elsewhere move the version on."""
    monkeypatch.setattr(client_module, "WATCH_SECONDS", 15)  # a bookmark comes two seconds before the end
    _, version = await kube.list(kinds.ENDPOINT_SLICE, namespace)
    await kube.create(kinds.ENDPOINT_SLICE, namespace, named("a", addressType="IPv4", endpoints=[]))
    elsewhere = f"e-{secrets.token_hex(4)}"
    seen: list[tuple[str, int]] = []
    async for kind, item in kube.watch(kinds.ENDPOINT_SLICE, version, namespace):
        if not seen:  # it has begun
            await kube.create(kinds.ENDPOINT_SLICE, "default", named(elsewhere, addressType="IPv4", endpoints=[]))
            await kube.delete(kinds.ENDPOINT_SLICE, "default", elsewhere)
        seen.append((kind, int(item.metadata.resource_version)))
    assert seen[0][0] == "ADDED"
    assert {kind for kind, _ in seen[1:]} == {"BOOKMARK"}
    assert seen[-1][1] > seen[0][1]
    assert (await kube.get(kinds.ENDPOINT_SLICE, namespace, "a")).endpoints == ()


async def test_events_are_taken_whatever_they_say(kube: KubeClient, namespace: str) -> None:
    recorder = Recorder(kube, "autoscaler", "p" * 253)
    name = "x" * 199 + "-" + "y" * 50
    about = await kube.create(CONFIG, namespace, named(name))
    recorder.tell(CONFIG, about, "Grown", "ü" * 2000, warning=True)

    async def look() -> int:
        return len((await kube.list(kinds.EVENT, namespace, fields=f"regarding.uid={about.metadata.uid}"))[0])

    assert await eventually(look, bool, "the event") == 1


# Caches through the server's troubles -------------------------------------------------------------------------------------


class Server:
    """An API server of the test's own, with an etcd."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.kubeconfig = self.script("start", str(folder)).strip()

    def script(self, *arguments: str) -> str:
        command = ["bash", str(ROOT / "e2e/cluster/envtest.sh"), *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=500).stdout.decode()

    async def restart(self, meanwhile: float = 1.0) -> None:
        """Kill the API server, let some time pass, start it on the same port."""
        number = int((self.folder / "apiserver.pid").read_text())
        os.kill(number, signal.SIGKILL)
        await until(lambda: not lives(number), "the end of the API server, which has the port until then")
        await asyncio.sleep(meanwhile)
        await asyncio.to_thread(self.script, "apiserver", str(self.folder))

    async def compact(self, version: str) -> None:
        """Make etcd forget everything before a version."""
        port = (self.folder / "ports").read_text().split()[1]
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://127.0.0.1:{port}/v3/kv/compaction", json={"revision": version, "physical": True}) as response,
        ):
            assert response.status == 200, await response.text()


def lives(number: int) -> bool:
    """A process that has not ended; one that nobody has waited for has."""
    try:
        return pathlib.Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.script("stop", str(made.folder))


@pytest.fixture
async def own(server: Server) -> AsyncIterator[KubeClient]:
    client = await KubeClient.connect(server.kubeconfig)
    yield client
    await client.close()


@pytest.fixture
async def place(own: KubeClient) -> str:
    """A namespace on the own server."""
    name = f"t-{secrets.token_hex(4)}"
    await own.create(kinds.NAMESPACE, "", named(name))
    return name


class Follower:
    """A running cache, and the copy that its listeners could build."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.cache = Cache(client, CONFIG, namespace)
        self.copy: dict[str, objects.ConfigMap] = {}
        self.wrong: list[str] = []
        self.cache.listen(self.change)

    def change(self, before: objects.ConfigMap | None, after: objects.ConfigMap | None) -> None:
        changed = after or before
        assert changed is not None
        key = changed.metadata.key
        if self.copy.get(key) != before:
            self.wrong.append(f"{key}: told as {before}, known as {self.copy.get(key)}")
        if after is None:
            del self.copy[key]
        else:
            self.copy[key] = after

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.cache.run())
        try:
            async with asyncio.timeout(120):
                await self.cache.synced.wait()
            yield
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def same_as(self, client: KubeClient, namespace: str) -> None:
        """Wait until it has what a list says, told right."""

        async def listed() -> dict[str, objects.ConfigMap]:
            return {item.metadata.key: item for item in (await client.list(CONFIG, namespace))[0]}

        await eventually(listed, lambda items: items == self.cache.items, "the cache equal to a list")
        assert self.copy == self.cache.items
        assert not self.wrong


async def churn(client: KubeClient, namespace: str, stop: asyncio.Event, failed: Callable[[], None]) -> int:
    """Make, change and delete objects until told to stop; calls that fail are not repeated. Returns how many were tried."""
    n = 0
    while not stop.is_set():
        n += 1
        try:
            await client.create(CONFIG, namespace, named(f"c{n}", data={"n": "0"}))
            await client.merge(CONFIG, namespace, f"c{n}", {"data": {"n": str(n)}})
            if n % 3 == 0:
                await client.delete(CONFIG, namespace, f"c{n - 1}")
        except KubeError:
            failed()
            await asyncio.sleep(0.05)
    return n


async def test_a_cache_misses_nothing_when_the_api_server_is_killed_and_started_again(server: Server, own: KubeClient, place: str) -> None:
    follower, stop, failures = Follower(own, place), asyncio.Event(), []
    async with follower.running():
        writer = asyncio.ensure_future(churn(own, place, stop, lambda: failures.append(1)))
        for pause in (0.0, 3.0):
            await server.restart(pause)
            count = len(follower.copy)
            await eventually(lambda: asyncio.sleep(0, len(follower.copy)), lambda now, was=count: now > was + 20, "news after a restart")  # type: ignore[misc]
        stop.set()
        tried = await writer
        await follower.same_as(own, place)
    assert failures, "nothing was tried while the server was away"
    print(f"{tried} objects tried, {len(failures)} calls failed, {follower.cache.relists} lists")


class Proxy:
    """A TCP proxy in front of a server, that a test can cut."""

    def __init__(self, port: int) -> None:
        self.target, self.port = port, 0
        self.links: set[asyncio.StreamWriter] = set()
        self.open = True

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self.link, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def cut(self) -> None:
        self.open = False
        for link in self.links:
            link.transport.abort()

    async def link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.links.add(writer)
        try:
            if self.open:
                there, back = await asyncio.open_connection("127.0.0.1", self.target)
                await asyncio.gather(self.pump(reader, back), self.pump(there, writer))
        except OSError:
            pass
        finally:
            self.links.discard(writer)
            writer.close()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


async def test_a_cache_whose_version_was_compacted_away_lists_again(
    server: Server, own: KubeClient, place: str, tmp_path: pathlib.Path
) -> None:
    """It is cut off, the world changes, history is forgotten, the way is open again: what it tells is the difference."""
    port = int((server.folder / "ports").read_text().split()[0])
    proxy = Proxy(port)
    listener = await proxy.start()
    config = tmp_path / "kubeconfig"
    config.write_text(pathlib.Path(server.kubeconfig).read_text().replace(f":{port}", f":{proxy.port}"))
    distant = await KubeClient.connect(str(config))
    follower = Follower(distant, place)
    await fill(own, place, 20)
    async with follower.running():
        await follower.same_as(own, place)
        _, before = await own.list(CONFIG, place)
        proxy.cut()
        await fill(own, place, 20, "new")
        for n in range(0, 20, 2):
            await own.delete(CONFIG, place, f"c{n}")
            await own.merge(CONFIG, place, f"c{n + 1}", {"data": {"n": "changed"}})
        await own.delete(CONFIG, place, "c1")
        await own.create(CONFIG, place, named("c1", data={"n": "again"}))
        _, version = await own.list(CONFIG, place)
        await server.compact(version)
        await server.restart(0.0)  # its own memory of changes goes too

        async def forgotten() -> bool:
            """A server that has just started may put off who asks until it has the present objects itself."""
            with contextlib.suppress(Gone):
                await anext(own.watch(CONFIG, before, place))
                return False
            return True

        await eventually(forgotten, bool, "that the version is gone")
        proxy.open = True
        await follower.same_as(own, place)
        assert follower.cache.relists == 2
        await own.create(CONFIG, place, named("afterwards"))
        await follower.same_as(own, place)
        assert follower.cache.relists == 2
    await distant.close()
    listener.close()


async def test_a_list_during_which_its_version_is_compacted_is_complete(
    server: Server, own: KubeClient, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(own, place, 30)
    monkeypatch.setattr(client_module, "LIMIT", 10)
    call, pages = own._call, 0

    async def forgetful(method: str, path: str, query: Any = None, *more: Any, **rest: Any) -> bytes:
        nonlocal pages
        answer = await call(method, path, query, *more, **rest)
        pages += 1
        if pages == 1:
            await own.create(kinds.SECRET, place, named("later"))
            changed = await own.get(kinds.SECRET, place, "later")
            await server.compact(changed.metadata.resource_version)
            await server.restart(0.0)
        return answer

    monkeypatch.setattr(own, "_call", forgetful)
    found, version = await own.list(CONFIG, place)
    assert {f"c{n}" for n in range(30)} <= {item.metadata.name for item in found}
    assert len({item.metadata.name for item in found}) == len(found)
    monkeypatch.undo()
    await own.create(CONFIG, place, named("next"))
    async with contextlib.aclosing(own.watch(CONFIG, version, place)) as watch:
        async for _, item in watch:
            if item.metadata.name == "next":
                break


# Elections ----------------------------------------------------------------------------------------------------------------

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


async def until(holds: Callable[[], object], what: str, limit: float = 120) -> None:
    await eventually(lambda: asyncio.sleep(0, holds()), bool, what, limit)


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


# A thousand objects -------------------------------------------------------------------------------------------------------


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
