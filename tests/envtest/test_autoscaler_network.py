"""Services and slices against a real API server: strangers are left alone, what is deleted or edited by hand comes back."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import NotFound
from envtest.autoscaling import FAST, Cast, World, autoscaler_of, state, stats
from envtest.steps import eventually


def served(pa: objects.PodAutoscaler) -> bool:
    return pa.status.service_name == "hello-1" and state(pa).get("SKSReady") == ("True", "")


async def test_a_service_of_another_controller_is_left_alone_until_it_goes(world: World, port: int, cast: Cast) -> None:
    cast.activator(port)
    sks = {"apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "ServerlessService", "name": "hello-1", "uid": "sks", "controller": True}
    theirs = {"metadata": {"name": "hello-1", "ownerReferences": [sks]}, "spec": {"ports": [{"name": "http", "port": 80}]}}
    before = await world.kube.create(kinds.SERVICE, world.namespace, theirs)
    await world.policy(FAST)
    await world.revision("hello-1", replicas=2)
    found = await eventually(lambda: world.pa("hello-1"), lambda pa: bool(pa.status.conditions), "a status")
    assert state(found)["Active"] == ("False", "NotOwned")
    assert state(found)["Ready"] == ("False", "NotOwned")
    assert found.status.service_name == ""
    again = await world.kube.get(kinds.SERVICE, world.namespace, "hello-1")
    assert again.metadata.resource_version == before.metadata.resource_version
    for name in ("hello-1-private", "hello-1-activators"):
        with pytest.raises(NotFound):
            await world.kube.get(kinds.SERVICE if "private" in name else kinds.ENDPOINT_SLICE, world.namespace, name)
    assert await world.replicas("hello-1") == 2
    await world.kube.delete(kinds.SERVICE, world.namespace, "hello-1")
    await eventually(lambda: world.pa("hello-1"), served, "our own Service")


async def delete_service(world: World) -> None:
    await world.kube.delete(kinds.SERVICE, world.namespace, "hello-1")


async def delete_private(world: World) -> None:
    await world.kube.delete(kinds.SERVICE, world.namespace, "hello-1-private")


async def delete_slice(world: World) -> None:
    await world.kube.delete(kinds.ENDPOINT_SLICE, world.namespace, "hello-1-activators")


async def edit_service(world: World) -> None:
    ports = [{"name": "http", "port": 80, "targetPort": 1234}]
    await world.kube.merge(kinds.SERVICE, world.namespace, "hello-1", {"spec": {"ports": ports}})


async def edit_slice(world: World) -> None:
    await world.kube.merge(kinds.ENDPOINT_SLICE, world.namespace, "hello-1-activators", {"endpoints": []})


async def network(world: World) -> list[Any]:
    services = [await world.kube.get(kinds.SERVICE, world.namespace, name) for name in ("hello-1", "hello-1-private")]
    held = await world.kube.get(kinds.ENDPOINT_SLICE, world.namespace, "hello-1-activators")
    return [*([(p.name, p.port, p.target_port) for p in s.spec.ports] for s in services), [e.addresses for e in held.endpoints]]


async def test_what_is_deleted_or_edited_by_hand_comes_back(world: World, port: int) -> None:
    await world.revision("hello-1")
    await eventually(lambda: world.pa("hello-1"), served, "a status")
    as_wanted = await network(world)
    assert as_wanted[2] == [("10.1.2.3",)]
    damages: list[Callable[[World], Awaitable[None]]] = [delete_service, delete_private, delete_slice, edit_service, edit_slice]
    for damage in damages:
        await damage(world)
        await eventually(lambda: network(world), lambda found: found == as_wanted, f"repair after {damage.__name__}")
    assert served(await world.pa("hello-1"))


async def test_a_podautoscaler_that_is_made_anew_is_served_anew(world: World, port: int, cast: Cast) -> None:
    activator, name = cast.activator(port), f"{world.namespace}/hello"
    await world.policy(FAST)
    await world.revision("hello-1")
    await world.revision_pod("hello-1", "a")
    await eventually(lambda: world.pa("hello-1"), lambda pa: state(pa).get("Ready") == ("True", ""), "Ready")

    async def told() -> bool:
        return name in activator.routes and bool(activator.routes[name].revisions)

    await eventually(told, bool, "a route")
    await world.kube.delete(kinds.POD_AUTOSCALER, world.namespace, "hello-1")
    await eventually(told, lambda found: not found, "no route")
    await world.podautoscaler("hello-1")
    for kind, made in ((kinds.SERVICE, "hello-1"), (kinds.SERVICE, "hello-1-private"), (kinds.ENDPOINT_SLICE, "hello-1-activators")):
        await world.kube.delete(kind, world.namespace, made)  # as the garbage collector does: its owner is gone
    await eventually(lambda: world.pa("hello-1"), lambda pa: state(pa).get("Ready") == ("True", ""), "Ready again")
    await eventually(told, bool, "a route again")
    activator.stats = stats(world, "hello-1", 25)
    await eventually(lambda: world.replicas("hello-1"), lambda n: n == 3, "it scales again")


async def test_pairing_can_be_switched_on_while_the_plain_revision_serves(world: World, port: int, cast: Cast) -> None:
    activator, name = cast.activator(port), f"{world.namespace}/hello"
    await world.revision("hello-1")
    await world.revision_pod("hello-1", "a")
    await world.route(hello_1=100)

    async def told() -> dict[str, list[str]]:
        return {
            route.map.service.removeprefix(name): [m for r in route.revisions for m in r.ready_members] for route in activator.routes.values()
            if route.map.service.startswith(name)
        }  # fmt: skip

    await eventually(told, lambda found: found == {"": ["a"]}, "the plain revision")
    await world.revision("hello-2", {"cloudstate.io/paired": "v1", "cloudstate.io/shards": "16"}, protocol="h2c")
    await world.revision_pod("hello-2", "b", "10.1.9.8")
    proxy = cast.proxy(port, "b", "hello-2")
    await eventually(told, lambda found: found == {"": ["b#1"], "/plain": ["a"]}, "both revisions")
    assert proxy.refused == ""
    assert not activator.routes[name].plain
    assert activator.routes[f"{name}/plain"].plain
    await world.kube.delete(kinds.POD_AUTOSCALER, world.namespace, "hello-1")
    await eventually(told, lambda found: found == {"": ["b#1"], "/plain": []}, "the plain revision is gone")


async def test_endpoints_that_are_deleted_with_their_service_come_back_with_it(world: World) -> None:
    """Kubernetes' own controller, which does not run here, deletes them so."""

    async def addresses() -> list[str]:
        with contextlib.suppress(NotFound):
            found = await world.kube.get(kinds.ENDPOINTS, world.namespace, "hello-1")
            return [address.ip for subset in found.subsets for address in subset.addresses]
        return []

    await world.activator()
    await world.revision("hello-1")
    process, _ = autoscaler_of(world.namespace)
    process.environment["AUTOSCALER_WRITE_ENDPOINTS"] = "true"
    await process.start()
    try:
        await eventually(addresses, lambda found: found == ["10.1.2.3"], "Endpoints")
        first = await world.kube.get(kinds.SERVICE, world.namespace, "hello-1")
        await delete_service(world)
        await world.kube.delete(kinds.ENDPOINTS, world.namespace, "hello-1")
        await eventually(addresses, lambda found: found == ["10.1.2.3"], "Endpoints again")
        assert (await world.kube.get(kinds.SERVICE, world.namespace, "hello-1")).metadata.uid != first.metadata.uid
    finally:
        assert await process.stop() == 0
