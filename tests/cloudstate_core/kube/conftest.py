"""What the tests of the Kubernetes client share: an API server in memory and a client of it."""

from __future__ import annotations

import json
import pathlib
from collections.abc import AsyncIterator

import pytest

from cloudstate_core.kube.client import KubeClient

from .fake_api import FakeApi


def kubeconfig(folder: pathlib.Path, url: str, **user: str) -> str:
    """A kubeconfig for a server; returns its path."""
    path = folder / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": user}],
            }
        )
    )
    return str(path)


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    fake = FakeApi()
    await fake.start()
    yield fake
    await fake.close()


@pytest.fixture
async def client(api: FakeApi, tmp_path: pathlib.Path) -> AsyncIterator[KubeClient]:
    made = await KubeClient.connect(kubeconfig(tmp_path, api.url))
    yield made
    await made.close()
