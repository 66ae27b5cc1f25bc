"""Events: told once per change, within the API's limits, never in anybody's way."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.events import Recorder
from cloudstate_core.kube.kinds import NAMESPACE, POD
from cloudstate_core.kube.objects import Metadata, Object

from .fake_api import FakeApi, refusing


def subject(name: str = "cart", uid: str = "u1", namespace: str = "n") -> Object:
    return Object(metadata=Metadata(name=name, namespace=namespace, uid=uid))


async def written(recorder: Recorder, api: FakeApi) -> list[dict[str, Any]]:
    """All events, once those under way are there."""
    await asyncio.gather(*recorder._tasks)
    return list(api.items["events"].values())


async def test_an_event_says_what_happened_to_whom(api: FakeApi, client: KubeClient) -> None:
    recorder = Recorder(client, "autoscaler", "pod-1")
    recorder.tell(POD, subject(), "Scaled", "to 3", warning=True)
    (event,) = await written(recorder, api)
    regarding = {"apiVersion": "v1", "kind": "Pod", "namespace": "n", "name": "cart", "uid": "u1"}
    assert event["regarding"] == regarding
    assert (event["reason"], event["note"], event["type"]) == ("Scaled", "to 3", "Warning")
    assert (event["reportingController"], event["reportingInstance"]) == ("cloudstate.io/autoscaler", "pod-1")


async def test_the_same_again_is_not_told_a_change_is(api: FakeApi, client: KubeClient) -> None:
    recorder = Recorder(client, "autoscaler", "pod-1")
    for note in ("to 1", "to 1", "to 2", "to 2", "to 1"):
        recorder.tell(POD, subject(), "Scaled", note)
    recorder.tell(POD, subject(), "Paired", "to 1")
    recorder.tell(POD, subject(uid="u2"), "Scaled", "to 1")
    assert len(await written(recorder, api)) == 5
    recorder.forget("u1")
    recorder.tell(POD, subject(), "Scaled", "to 1")
    recorder.tell(POD, subject(uid="u2"), "Scaled", "to 1")
    assert len(await written(recorder, api)) == 6


async def test_reasons_of_one_topic_end_one_another(api: FakeApi, client: KubeClient) -> None:
    recorder = Recorder(client, "revision-controller", "pod-1")
    assert recorder.last("u1", "connection") == ""
    for reason in ("Connected", "Connected", "Unreachable", "Connected"):
        recorder.tell(POD, subject(), reason, "the store", topic="connection")
    told = sorted(await written(recorder, api), key=lambda event: str(event["eventTime"]))
    assert [event["reason"] for event in told] == ["Connected", "Unreachable", "Connected"]
    assert recorder.last("u1", "connection") == "Connected"
    assert recorder.last("u2", "connection") == ""


@pytest.mark.parametrize("name", ["x" * 199 + "-" + "y" * 50, "a" * 198 + ".-b", "short"])
async def test_names_notes_and_instances_keep_the_apis_limits(api: FakeApi, client: KubeClient, name: str) -> None:
    recorder = Recorder(client, "autoscaler", "p" * 253)
    recorder.tell(POD, subject(name), "Long", "ü" * 2000)
    (event,) = await written(recorder, api)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", event["metadata"]["name"])
    assert len(event["metadata"]["name"]) <= 253
    assert len(event["note"].encode()) <= 1024
    assert len(event["reportingInstance"]) <= 128


async def test_a_refused_event_is_forgotten(api: FakeApi, client: KubeClient) -> None:
    api.faults["POST"] += [refusing(403, "Forbidden"), refusing(404, "NotFound")]
    recorder = Recorder(client, "autoscaler", "pod-1")
    recorder.tell(POD, subject(), "Scaled", "to 3")
    recorder.tell(POD, subject(), "Scaled", "to 4")
    assert await written(recorder, api) == []


async def test_what_has_no_namespace_is_told_in_the_default_one(api: FakeApi, client: KubeClient) -> None:
    paths: list[str] = []

    async def note(request: Any) -> Any:
        paths.append(request.path)
        return await refusing(404, "NotFound")(request)

    recorder = Recorder(client, "autoscaler", "pod-1")
    api.any_namespace = note
    recorder.tell(NAMESPACE, subject(namespace=""), "Seen", "it")
    await written(recorder, api)
    assert paths == ["/apis/events.k8s.io/v1/namespaces/default/events"]
