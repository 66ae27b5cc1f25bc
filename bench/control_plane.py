"""`python -m bench.control_plane`: how long the control plane takes to take in a cluster that is full when it starts.

It needs CLOUDSTATE_ENVTEST, the kubeconfig of an API server with Knative's and our resource definitions (`make bench-control-plane` starts
one). A thousand revisions are there before the component starts; measured is the time from its start, the interpreter's included, until all
of them are served. No pods run: what Knative and the kubelet do is not the component's share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import Kind
from cloudstate_core.kube.client import KubeClient
from kn_cloudstate.ports import free_port
from kn_cloudstate.results import Row, table, write

BAR = 60.0
LIMIT = 2 * BAR
AT_ONCE = 16
EVENT: Kind[Any] = Kind("events.k8s.io", "v1", "events", "Event", objects.Object)
CLASS = {"autoscaling.knative.dev/class": "concurrency.cloudstate.io"}
ACTIVATOR = {"app.kubernetes.io/component": "activator", "app.kubernetes.io/part-of": "cloudstate-knative"}
TEMPLATE = {"containers": [{"name": "user-container", "image": "dev.local/none"}]}


async def create_all(makers: list[Callable[[], Awaitable[Any]]]) -> None:
    """Create many objects, some at a time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(make: Callable[[], Awaitable[Any]]) -> None:
        async with room:
            await make()

    async with asyncio.TaskGroup() as group:
        for make in makers:
            group.create_task(one(make))


@contextlib.asynccontextmanager
async def namespace(kube: KubeClient) -> AsyncIterator[str]:
    """A namespace of the measurement's own."""
    name = f"bench-{secrets.token_hex(4)}"
    await kube.create(kinds.NAMESPACE, "", {"metadata": {"name": name}})
    yield name
    await kube.delete(kinds.NAMESPACE, "", name)


@contextlib.asynccontextmanager
async def component(module: str, environment: dict[str, str]) -> AsyncIterator[None]:
    """A component's process, in the way its image starts it."""
    own = {"KUBECONFIG": os.environ["CLOUDSTATE_ENVTEST"], "POD_NAME": f"{module}-1", **environment}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, env={**os.environ, **own})
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def seconds_until(count: Callable[[], Awaitable[int]], wanted: int, began: float) -> float | None:
    """Seconds from `began` until `count` is as wanted; None when it takes too long."""
    while (took := time.monotonic() - began) < LIMIT:
        if await count() >= wanted:
            return took
        await asyncio.sleep(0.5)
    return None


def revision_objects(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Deployment and PodAutoscaler of a plain revision, as Knative makes them."""
    labels = {f"serving.knative.dev/{key}": name for key in ("revision", "service", "revisionUID")}
    deployment = {
        "metadata": {"name": f"{name}-deployment", "labels": labels},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": TEMPLATE},
        },
    }
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{name}-deployment"}
    spec = {"protocolType": "http1", "reachability": "Reachable", "scaleTargetRef": target}
    return deployment, {"metadata": {"name": name, "labels": labels, "annotations": CLASS}, "spec": spec}


async def autoscaler_rows(kube: KubeClient, revisions: int) -> list[Row]:
    """Start with nothing served yet, then once more as the next leader, with everything as it should be."""
    async with namespace(kube) as ns:
        made = [revision_objects(f"r-{n:04d}") for n in range(revisions)]
        owners = [{"metadata": {"name": f"r-{n:04d}"}, "spec": TEMPLATE} for n in range(revisions)]
        await create_all([lambda r=r: kube.create(kinds.REVISION, ns, r) for r in owners])  # type: ignore[misc]
        await create_all([lambda d=d: kube.create(kinds.DEPLOYMENT, ns, d) for d, _ in made])  # type: ignore[misc]
        await create_all([lambda p=p: kube.create(kinds.POD_AUTOSCALER, ns, p) for _, p in made])  # type: ignore[misc]
        await kube.create(kinds.POD, ns, {"metadata": {"name": "activator", "labels": ACTIVATOR}, "spec": TEMPLATE})
        status = {"podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}], "conditions": [{"type": "Ready", "status": "True"}]}
        await kube.merge(kinds.POD, ns, "activator", {"status": status}, "status")
        own = {"POD_IP": "10.9.8.7", "POD_NAMESPACE": ns, "AUTOSCALER_PORT": str(free_port()), "AUTOSCALER_ADMIN_PORT": str(free_port())}

        async def served() -> int:
            found, _ = await kube.list(kinds.POD_AUTOSCALER, ns)
            return sum(bool(pa.status.service_name) for pa in found)

        began = time.monotonic()
        async with component("autoscaler", own):
            cold = await seconds_until(served, revisions, began)

        async def leads() -> int:
            found, _ = await kube.list(kinds.ENDPOINT_SLICE, ns, "kubernetes.io/service-name=cloudstate-autoscaler")
            return len(found)

        await kube.delete(kinds.ENDPOINT_SLICE, ns, "cloudstate-autoscaler-leader")
        began = time.monotonic()
        async with component("autoscaler", own):
            warm = await seconds_until(leads, 1, began)
    return [
        Row(f"autoscaler: {revisions} new revisions have their network and status", cold, "s", bar=BAR),
        Row(f"autoscaler: takeover of {revisions} revisions until it serves", warm, "s", bar=BAR),
    ]


async def controller_rows(kube: KubeClient, revisions: int) -> list[Row]:
    """Revisions that were paired while no controller was there; each is told what its pairing found."""
    async with namespace(kube) as ns:
        annotations = {"cloudstate.io/enabled": "true", "cloudstate.io/paired": "v1", "cloudstate.io/stateful-store": "carts"}
        await kube.create(kinds.STATEFUL_STORE, ns, {"metadata": {"name": "carts"}, "spec": {"inMemory": {}}})
        bodies = [{"metadata": {"name": f"r-{n:04d}", "annotations": annotations}, "spec": TEMPLATE} for n in range(revisions)]
        await create_all([lambda b=b: kube.create(kinds.REVISION, ns, b) for b in bodies])  # type: ignore[misc]
        own = {
            "POD_NAMESPACE": ns, "WEBHOOK_PORT": str(free_port()), "WEBHOOK_HOST": "127.0.0.1", "WEBHOOK_NAMES": "localhost",
            "ADMIN_PORT": str(free_port()), "PROXY_IMAGE": "dev.local/proxy:1",
        }  # fmt: skip

        async def told() -> int:
            found, _ = await kube.list(EVENT, ns)
            return len({event.metadata.name.split(".")[0] for event in found if event.metadata.name.startswith("r-")})

        began = time.monotonic()
        async with component("revision_controller", own):
            took = await seconds_until(told, revisions, began)
    return [Row(f"revision controller: {revisions} paired revisions have their event", took, "s", bar=BAR)]


async def measure(revisions: int) -> list[Row]:
    """All rows."""
    kube = await KubeClient.connect(os.environ["CLOUDSTATE_ENVTEST"])
    try:
        return await autoscaler_rows(kube, revisions) + await controller_rows(kube, revisions)
    finally:
        await kube.close()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--revisions", type=int, default=1000, help="how many there are (default 1000)")
    options = parser.parse_args()
    if "CLOUDSTATE_ENVTEST" not in os.environ:
        print("error: CLOUDSTATE_ENVTEST must name the kubeconfig of a test API server: make bench-control-plane", file=sys.stderr)
        return 2
    rows = asyncio.run(measure(options.revisions))
    path = write("envtest", rows)
    print(table([{"topic": "envtest", "rows": [row.as_json() for row in rows]}]))
    print(f"written to {path}")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
