"""Fixtures of the tests against a real API server: a client, a namespace of their own, and a world for an autoscaler to look at.

`CLOUDSTATE_ENVTEST` names the kubeconfig of a server that has Knative's and our resource definitions (`make envtest` starts one).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator

import pytest

from cloudstate_core.kube import kinds
from cloudstate_core.kube.client import KubeClient
from envtest.autoscaling import Cast, World, replica


@pytest.fixture
async def kube() -> AsyncIterator[KubeClient]:
    client = await KubeClient.connect(os.environ["CLOUDSTATE_ENVTEST"])
    yield client
    await client.close()


@pytest.fixture
async def namespace(kube: KubeClient) -> AsyncIterator[str]:
    name = f"t-{secrets.token_hex(4)}"
    await kube.create(kinds.NAMESPACE, "", {"metadata": {"name": name}})
    yield name
    await kube.delete(kinds.NAMESPACE, "", name)


@pytest.fixture
def world(kube: KubeClient, namespace: str) -> World:
    return World(kube, namespace)


@pytest.fixture
async def port(world: World) -> AsyncIterator[int]:
    """Where the autoscaler's process takes proxies and activators; one activator's pod is there."""
    await world.activator()
    async with replica(world.namespace) as (_, port):
        yield port


@pytest.fixture
async def cast(world: World) -> AsyncIterator[Cast]:
    made = Cast(world)
    yield made
    await made.leave()
