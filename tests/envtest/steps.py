"""What tests against a real API server do alike: wait for a state, run a component's process as somebody, read events."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import secrets
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import pytest
import yaml

from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import Kind, KubeError
from cloudstate_core.kube.client import KubeClient

T = TypeVar("T")
CONFIG = kinds.CONFIG_MAP


async def eventually(look: Callable[[], Awaitable[T]], holds: Callable[[T], bool], what: str, limit: float = 120) -> T:
    """Look until the state holds; fails with what was seen last."""
    deadline = asyncio.get_running_loop().time() + limit
    seen: Any = None
    while asyncio.get_running_loop().time() < deadline:
        with contextlib.suppress(KubeError):
            seen = await look()
            if holds(seen):
                return seen  # type: ignore[no-any-return]
        await asyncio.sleep(0.05)
    pytest.fail(f"{what} never held; last seen: {seen}")


async def until(holds: Callable[[], object], what: str, limit: float = 120) -> None:
    await eventually(lambda: asyncio.sleep(0, holds()), bool, what, limit)


def named(name: str, **body: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, **body.pop("metadata", {})}, **body}


async def fill(kube: KubeClient, namespace: str, count: int, prefix: str = "c") -> None:
    """Many ConfigMaps, some at a time."""
    some = asyncio.Semaphore(32)

    async def one(n: int) -> None:
        async with some:
            await kube.create(CONFIG, namespace, named(f"{prefix}{n}", data={"n": str(n)}))

    await asyncio.gather(*(one(n) for n in range(count)))


async def as_account(kube: KubeClient, namespace: str, account: str, folder: pathlib.Path) -> str:
    """Path of a kubeconfig with which a process is that ServiceAccount and nobody else."""
    token: Kind[_Token] = Kind("authentication.k8s.io", "v1", "tokenrequests", "TokenRequest", _Token)
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    body = {"apiVersion": token.api_version, "kind": token.kind, "spec": {"expirationSeconds": 3600}}
    granted = msgspec.json.decode(await kube._call("POST", path, body=body), type=_Token)
    config = yaml.safe_load(pathlib.Path(os.environ["CLOUDSTATE_ENVTEST"]).read_text())
    config["users"][0]["user"] = {"token": granted.status.token}
    made = folder / f"{account}.kubeconfig"
    made.write_text(yaml.safe_dump(config))
    return str(made)


class _TokenStatus(objects.Struct, frozen=True):
    token: str = ""


class _Token(objects.Object, frozen=True):
    status: _TokenStatus = _TokenStatus()


class Component:
    """A component's process, `python -m <module>`, with the test server as its cluster."""

    def __init__(self, module: str, environment: dict[str, str]) -> None:
        self.module, self.environment = module, environment
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        own = {"KUBECONFIG": os.environ["CLOUDSTATE_ENVTEST"], "POD_NAME": f"{self.module}-{secrets.token_hex(2)}", **self.environment}
        self.process = await asyncio.create_subprocess_exec(sys.executable, "-m", self.module, env={**os.environ, **own})

    @property
    def resident(self) -> float:
        """MiB of memory that the process holds now."""
        assert self.process is not None
        lines = pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024

    async def stop(self) -> int:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 60)

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()


class _Regarding(objects.Struct, frozen=True):
    name: str = ""


class _Event(objects.Object, frozen=True):
    reason: str = ""
    note: str = ""
    event_time: str = ""
    regarding: _Regarding = _Regarding()


EVENT: Kind[_Event] = Kind("events.k8s.io", "v1", "events", "Event", _Event)


async def told(kube: KubeClient, namespace: str, name: str) -> list[tuple[str, str]]:
    """Reason and note of every event about an object, oldest first."""
    found, _ = await kube.list(EVENT, namespace)
    ours = sorted((event.event_time, event.reason, event.note) for event in found if event.regarding.name == name)
    return [(reason, note) for _, reason, note in ours]


async def events(kube: KubeClient, namespace: str, name: str) -> dict[str, str]:
    """Reason to note of the events about an object."""
    return dict(await told(kube, namespace, name))
