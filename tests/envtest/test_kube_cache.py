"""Caches against a real API server that is killed, cut off, and forgets: nothing is missed, and each change is told once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from cloudstate_core.kube import client as client_module
from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import Gone, KubeError
from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.client import KubeClient
from envtest.steps import CONFIG, eventually, fill, named, until

ROOT = pathlib.Path(__file__).parents[2]


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


async def test_a_cache_whose_version_was_compacted_away_lists_again(server: Server, own: KubeClient, place: str, tmp_path: pathlib.Path) -> None:
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
