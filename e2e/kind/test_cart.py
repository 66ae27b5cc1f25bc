"""The stateful journey on stock Knative: from zero and back, under load, through crashes, rollouts and restarts, nothing lost or applied twice."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from cloudstate_core.kube import kinds
from cloudstate_core.kube.client import KubeClient

from .carts import PRODUCT, Carts
from .conftest import CART, INGRESS, LIMIT, Cluster, Json, Product, cart_service, seen, soon

FROM_ZERO = 2
PACE = {"autoscaling.knative.dev/target": "4", "autoscaling.knative.dev/max-scale": "4", "autoscaling.knative.dev/window": "6s"}


@pytest.fixture
async def cart(product: Product, cluster: Cluster) -> AsyncIterator[Carts]:
    """A cart service that is Ready, and a client of it."""
    cluster.apply(product.store("carts"))
    cluster.create(cart_service("carts", PACE))
    cluster.until_ready(CART)
    carts = Carts(cluster.host(CART))
    yield carts
    await carts.close()


async def test_a_command_is_kept_through_zero(cart: Carts, cluster: Cluster, measured: Any) -> None:
    assert await cart.add("ann")
    assert await cart.quantity("ann") == 1
    from_zero, own_share = [], []
    for _ in range(FROM_ZERO):
        await soon(lambda: not cluster.living(CART), "no living pod")
        async with first_ready_pod(cluster) as ready:
            began = time.monotonic()
            assert await cart.quantity("ann") == 1
            answered = time.monotonic()
            from_zero.append(answered - began)
            own_share.append(answered - await asyncio.wait_for(ready, LIMIT))
    measured("stateful cart: from zero to the answer", from_zero, "s")
    measured("stateful cart: from the kubelet's Ready to the answer (below zero: answered before)", own_share, "s", bar=0.3)
    await soon(lambda: seen(cluster, "Paired", "revision"), "an event that says that the revision was paired")


@contextlib.asynccontextmanager
async def first_ready_pod(cluster: Cluster) -> AsyncIterator[asyncio.Future[float]]:
    """When the kubelet first called a pod of the cart Ready that was not there before, on the monotonic clock."""
    kube = await KubeClient.connect(cluster.kubeconfig)
    known, version = await kube.list(kinds.POD, cluster.namespace)
    before = {pod.metadata.uid for pod in known}
    ready: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def follow() -> None:
        async for _, pod in kube.watch(kinds.POD, version, cluster.namespace):
            if pod.ready and pod.metadata.uid not in before and not ready.done():
                ready.set_result(time.monotonic())

    task = asyncio.create_task(follow())
    try:
        yield ready
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await kube.close()


async def test_commands_that_wait_at_zero_are_applied_once_each(cart: Carts, cluster: Cluster) -> None:
    await soon(lambda: not cluster.living(CART), "no living pod")
    await asyncio.gather(*(cart.add(f"cart-{n % 50}") for n in range(200)))
    assert cart.ledger.errors == []
    assert cart.ledger.total == 200
    assert await cart.wrong() == {}


async def test_an_event_that_comes_twice_as_http_counts_once(cart: Carts, cluster: Cluster) -> None:
    item = {"userId": "eve", "productId": PRODUCT, "name": "Apple", "quantity": 2}
    attributes = {"id": "1", "source": "/e2e", "specversion": "1.0", "type": "com.example.shoppingcart.AddLineItem"}
    headers = {"Host": cluster.host(CART), **{f"ce-{name}": value for name, value in attributes.items()}}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT)) as session:
        for _ in range(2):
            async with session.post(f"http://{INGRESS}/topics/items", json=item, headers=headers) as answer:
                assert (answer.status, await answer.text()) == (204, "")
    assert await cart.quantity("eve") == 2


async def test_pods_come_with_load_and_go_without_an_error(cart: Carts, cluster: Cluster, measured: Any) -> None:
    async with cart.load(carts=24):
        await soon(lambda: len(cluster.members(CART)) == 4, "four pods that own shards")
    measured("stateful cart: commands acknowledged while one pod became four", [cart.ledger.total], "commands")
    assert cart.ledger.errors == []
    async with cart.load(carts=1, pause=0.2):
        await soon(lambda: len(cluster.living(CART)) == 1, "one pod again")
    assert cart.ledger.errors == []
    assert await cart.wrong() == {}


async def test_a_pod_deleted_under_load_loses_nothing(cart: Carts, cluster: Cluster) -> None:
    async with cart.load(carts=16):
        await soon(lambda: len(cluster.members(CART)) >= 2, "two pods that own shards")
        victim = cluster.members(CART)[0]
        cluster.kubectl("delete", "pod", victim, "--wait=false")
        await soon(lambda: victim not in cluster.members(CART), "the victim's shards elsewhere")
        acknowledged = cart.ledger.total
        await soon(lambda: cart.ledger.total > acknowledged + 100, "commands going on")
    assert cart.ledger.errors == []
    assert await cart.wrong() == {}


async def test_a_pod_killed_hard_loses_nothing_acknowledged(cart: Carts, cluster: Cluster) -> None:
    async with cart.load(carts=16):
        await soon(lambda: len(cluster.members(CART)) >= 2, "two pods that own shards")
        victim = cluster.members(CART)[0]
        cluster.kubectl("delete", "pod", victim, "--grace-period=0", "--force", "--wait=false")
        await soon(lambda: victim not in cluster.members(CART), "the victim's shards elsewhere")
        acknowledged = cart.ledger.total
        await soon(lambda: cart.ledger.total > acknowledged + 100, "commands going on")
    assert await cart.wrong() == {}


async def test_a_new_revision_takes_over_under_load(cart: Carts, cluster: Cluster) -> None:
    async with cart.load(carts=8):
        await soon(lambda: cart.ledger.total > 50, "load")
        cluster.apply(cart_service("carts", PACE, GREETING="second"))
        await soon(lambda: latest_ready(cluster) == "cart-00002", "the second revision Ready")
        await soon(lambda: bool(owners := cluster.members(CART)) and all("cart-00002" in pod for pod in owners), "all shards there")
        acknowledged = cart.ledger.total
        await soon(lambda: cart.ledger.total > acknowledged + 100, "commands going on")
    assert cart.ledger.errors == []
    assert await cart.wrong() == {}


def latest_ready(cluster: Cluster) -> str:
    found: str = cluster.get("ksvc", CART)["status"].get("latestReadyRevisionName", "")
    return found


async def test_a_policy_changes_the_scale_without_a_restart(cart: Carts, cluster: Cluster) -> None:
    assert await cart.add("ann")
    async with cart.load(carts=1, pause=0.2):  # or the pod may go to zero before the policy is there
        before = {pod["metadata"]["name"] for pod in cluster.living(CART)}
        cluster.apply(policy({"min": 2, "max": 3}))
        await soon(lambda: len(cluster.members(CART)) == 2, "two pods by the policy's minimum")
        assert before <= {pod["metadata"]["name"] for pod in cluster.living(CART)}, "no pod was restarted"
    await soon(lambda: told(cluster) == (1, "Accepted", 2), "the policy tells whom it applies to, and with which minimum")
    cluster.kubectl("delete", "autoscalingpolicy", "cart")
    await soon(lambda: not cluster.living(CART), "zero without the policy")
    assert await cart.quantity("ann") == 1


def told(cluster: Cluster) -> tuple[int, str, int]:
    """What the policy's status says: how many revisions it applies to, the verdict, and the minimum in force."""
    status = cluster.get("autoscalingpolicy", "cart").get("status", {})
    effective, conditions = status.get("effective") or [{}], status.get("conditions") or [{}]
    return status.get("matched", 0), conditions[0].get("reason", ""), effective[0].get("min", 0)


def policy(scale: Json) -> Json:
    spec = {"selector": {"matchLabels": {"app": CART}}, "scale": scale, "scaleToZero": {"gracePeriod": "1s"}}
    return {"apiVersion": "autoscaling.cloudstate.io/v1alpha1", "kind": "AutoscalingPolicy", "metadata": {"name": "cart"}, "spec": spec}


async def test_our_controllers_restart_one_by_one_under_load(cart: Carts, cluster: Cluster, product: Product) -> None:
    async with cart.load(carts=8):
        await soon(lambda: cart.ledger.total > 50, "load")
        for component in ("revision-controller", "autoscaler", "activator"):
            await asyncio.to_thread(product.restart, component)  # the load goes on meanwhile
            acknowledged = cart.ledger.total
            await soon(lambda was=acknowledged: cart.ledger.total > was + 100, f"commands going on after the {component}'s restart")
    assert cart.ledger.errors == []
    assert await cart.wrong() == {}


async def test_a_deleted_service_leaves_nothing_behind(cart: Carts, cluster: Cluster) -> None:
    """It is the cluster's garbage collector that deletes most of it, in its own time: up to two minutes were seen."""
    assert await cart.add("ann")
    cluster.kubectl("delete", "ksvc", CART, "--wait=false")
    kinds = "revision,podautoscaler,deployment,service,endpointslice,shardmap,ingresses.networking.internal.knative.dev"
    left: list[str] = []

    def gone() -> bool:
        left[:] = cluster.kubectl("get", kinds, "--output", "name").split()
        return not left

    try:
        await soon(gone, "nothing of the service", limit=3 * LIMIT)
    finally:
        print("left of the service:", *left)


async def test_a_bad_annotation_is_refused_with_the_key_the_value_and_the_rule(product: Product, cluster: Cluster) -> None:
    told = cluster.refusal(cart_service("carts", {}, {"cloudstate.io/shards": "many"}))
    assert "annotation cloudstate.io/shards: 'many' must be a whole number from 1 to 4096" in told
    told = cluster.refusal(cart_service("carts", {}, {"cloudstate.io/stateful-shop": "carts"}))
    assert "annotation cloudstate.io/stateful-shop: no such key (its value is 'carts'); the keys are" in told
