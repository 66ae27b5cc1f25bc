"""The stateful journey on stock Knative: from zero and back, under load, through crashes, rollouts and restarts, nothing lost or applied twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from .carts import Carts
from .conftest import CART, Cluster, Json, Product, cart_service, seen, soon

PACE = {"autoscaling.knative.dev/target": "4", "autoscaling.knative.dev/max-scale": "4", "autoscaling.knative.dev/window": "6s"}


@pytest.fixture
async def cart(product: Product, cluster: Cluster) -> AsyncIterator[Carts]:
    """A cart service that is Ready, and a client of it."""
    cluster.apply(product.store("carts"), cart_service("carts", PACE))
    cluster.until_ready(CART)
    carts = Carts(cluster.host(CART))
    yield carts
    await carts.close()


async def test_a_command_is_kept_through_zero(cart: Carts, cluster: Cluster, measured: Any) -> None:
    assert await cart.add("ann")
    assert await cart.quantity("ann") == 1
    await soon(lambda: not cluster.living(CART), "no living pod")
    began = time.monotonic()
    assert await cart.quantity("ann") == 1
    measured("stateful cart: from zero to the answer", [time.monotonic() - began], "s")
    assert seen(cluster, "Paired", "revision"), "an event says that the revision was paired"


async def test_commands_that_wait_at_zero_are_applied_once_each(cart: Carts, cluster: Cluster) -> None:
    await soon(lambda: not cluster.living(CART), "no living pod")
    await asyncio.gather(*(cart.add(f"cart-{n % 50}") for n in range(200)))
    assert cart.ledger.errors == []
    assert cart.ledger.total == 200
    assert await cart.wrong() == {}


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
    before = {pod["metadata"]["name"] for pod in cluster.living(CART)}
    cluster.apply(policy({"min": 2, "max": 3}))
    await soon(lambda: len(cluster.members(CART)) == 2, "two pods by the policy's minimum")
    assert before <= {pod["metadata"]["name"] for pod in cluster.living(CART)}, "no pod was restarted"
    status = cluster.get("autoscalingpolicy", "cart")["status"]
    assert (status["matched"], status["conditions"][0]["reason"]) == (1, "Accepted")
    assert status["effective"][0]["min"] == 2
    cluster.kubectl("delete", "autoscalingpolicy", "cart")
    await soon(lambda: not cluster.living(CART), "zero without the policy")
    assert await cart.quantity("ann") == 1


def policy(scale: Json) -> Json:
    spec = {"selector": {"matchLabels": {"app": CART}}, "scale": scale, "scaleToZero": {"gracePeriod": "1s"}}
    return {"apiVersion": "autoscaling.cloudstate.io/v1alpha1", "kind": "AutoscalingPolicy", "metadata": {"name": "cart"}, "spec": spec}


async def test_our_controllers_restart_one_by_one_under_load(cart: Carts, cluster: Cluster, product: Product) -> None:
    async with cart.load(carts=8):
        await soon(lambda: cart.ledger.total > 50, "load")
        for component in ("revision-controller", "autoscaler", "activator"):
            product.restart(component)
            acknowledged = cart.ledger.total
            await soon(lambda was=acknowledged: cart.ledger.total > was + 100, f"commands going on after the {component}'s restart")
    assert cart.ledger.errors == []
    assert await cart.wrong() == {}


async def test_a_deleted_service_leaves_nothing_behind(cart: Carts, cluster: Cluster) -> None:
    assert await cart.add("ann")
    cluster.kubectl("delete", "ksvc", CART, "--wait=false")
    kinds = "revision,podautoscaler,deployment,service,endpointslice,shardmap,ingresses.networking.internal.knative.dev"
    await soon(lambda: cluster.kubectl("get", kinds, "--output", "name").split() == [], "nothing of the service", limit=180)


async def test_a_bad_annotation_is_refused_with_the_key_the_value_and_the_rule(product: Product, cluster: Cluster) -> None:
    told = cluster.refusal(cart_service("carts", {}, {"cloudstate.io/shards": "many"}))
    assert "annotation cloudstate.io/shards: 'many' must be a whole number from 1 to 4096" in told
    told = cluster.refusal(cart_service("carts", {}, {"cloudstate.io/stateful-shop": "carts"}))
    assert "annotation cloudstate.io/stateful-shop: is not known; the keys are" in told
