"""What admission answers: patches, warnings, refusals in sentences."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from revision_controller import admission
from revision_controller.admission import Answer, Found, Refused
from revision_controller.pairing import ProxySettings

PROXY = ProxySettings("proxy:1", "leader:8101")
ENABLED = {"cloudstate.io/enabled": "true", "cloudstate.io/stateful-store": "carts"}
REDIS = Found("carts", {"redis": {"host": "redis"}})
MEMORY = Found("carts", {"inMemory": {}})


def revision(annotations: dict[str, str]) -> dict[str, Any]:
    return {"metadata": {"name": "cart-1", "namespace": "shop", "annotations": annotations}, "spec": {"containers": [{"image": "cart"}]}}


def service(template: dict[str, str], own: dict[str, str] | None = None) -> dict[str, Any]:
    metadata = {"name": "cart", "namespace": "shop", "annotations": own or {}}
    return {"metadata": metadata, "spec": {"template": {"metadata": {"annotations": template}}}}


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(Refused) as refused:
        call(*arguments)
    return str(refused.value)


# Pairing ----------------------------------------------------------------------------------------------------------------


def test_a_revision_that_asks_for_a_proxy_is_patched() -> None:
    answer = admission.pair(revision(ENABLED), REDIS, PROXY)
    assert [operation["path"] for operation in answer.patch] == ["/metadata/annotations", "/spec/containers"]


def test_a_revision_that_does_not_ask_is_left_alone() -> None:
    assert admission.pair(revision({"cloudstate.io/enabled": "false"}), REDIS, PROXY) == Answer()


@pytest.mark.parametrize(
    ("annotations", "found", "said"),
    [
        (ENABLED, Found("carts", None), "'carts' must name a StatefulStore in namespace shop, and there is none"),
        (ENABLED, Found("", None), "must name a StatefulStore in namespace shop; config-cloudstate gives no default"),
        (ENABLED, Found("carts", {"postgres": {}}), "spec.postgres: is not supported by this release"),
        (ENABLED, MEMORY, "inMemory keeps entities in one pod only: set the annotation autoscaling.knative.dev/max-scale to 1"),
        (ENABLED | {"cloudstate.io/shards": "x"}, REDIS, "annotation cloudstate.io/shards: 'x' must be a whole number"),
    ],
)
def test_a_revision_that_cannot_work_is_refused(annotations: dict[str, str], found: Found, said: str) -> None:
    assert said in refusal(admission.pair, revision(annotations), found, PROXY)


@pytest.mark.parametrize("key", admission.MAX_SCALE)
def test_memory_serves_a_revision_of_one_pod(key: str) -> None:
    assert admission.pair(revision(ENABLED | {key: "1"}), MEMORY, PROXY).patch


# Revisions that exist ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["cloudstate.io/enabled", "cloudstate.io/shards", "cloudstate.io/stateful-store", "cloudstate.io/paired"])
def test_what_pods_were_made_with_does_not_change(key: str) -> None:
    values = {"cloudstate.io/enabled": ("true", "false"), "cloudstate.io/shards": ("8", "9")}
    before, after = values.get(key, ("a", "b"))
    assert f"annotation {key}: '{after}' cannot replace '{before}' on a revision" in refusal(
        admission.check_revision, revision({key: after}), revision({key: before})
    )
    assert f"annotation {key}: None cannot replace '{before}'" in refusal(admission.check_revision, revision({}), revision({key: before}))


def test_policy_and_keys_of_others_may_change() -> None:
    old = {"cloudstate.io/policy": "a", "serving.knative.dev/routingStateModified": "1", **ENABLED}
    new = {"cloudstate.io/policy": "b", "serving.knative.dev/routingStateModified": "2", **ENABLED}
    assert admission.check_revision(revision(new), revision(old)) == Answer()


def test_a_new_revision_may_carry_the_mark_of_pairing() -> None:
    assert admission.check_revision(revision({"cloudstate.io/paired": "v1"}), None) == Answer()


# Services ---------------------------------------------------------------------------------------------------------------


def test_a_service_as_kn_sends_it_passes_without_a_word() -> None:
    annotations = {**ENABLED, "local.cloudstate.io/command": "python cart.py"}
    assert admission.check_service(service(annotations, annotations), None, REDIS) == Answer()


@pytest.mark.parametrize("where", ["own", "template"])
def test_a_bad_annotation_is_refused_wherever_it_stands_and_told_once(where: str) -> None:
    bad = {"cloudstate.io/shards": "0"}
    given = service(bad, bad if where == "own" else {})
    assert refusal(admission.check_service, given, None) == "annotation cloudstate.io/shards: '0' must be a whole number from 1 to 4096"


def test_a_bad_annotation_of_the_service_is_not_hidden_by_a_good_one_of_its_template() -> None:
    given = service({"cloudstate.io/shards": "8"}, {"cloudstate.io/shards": "0"})
    assert "'0' must be a whole number" in refusal(admission.check_service, given, None)


def test_people_cannot_claim_that_a_revision_is_paired() -> None:
    assert "annotation cloudstate.io/paired: no such key" in refusal(admission.check_service, service({"cloudstate.io/paired": "v1"}), None)


@pytest.mark.parametrize(
    ("before", "after", "fine"),
    [
        (ENABLED, ENABLED | {"cloudstate.io/shards": "64"}, False),
        (ENABLED | {"cloudstate.io/shards": "64"}, ENABLED, False),
        (ENABLED | {"cloudstate.io/shards": "64"}, {"cloudstate.io/enabled": "false", "cloudstate.io/shards": "32"}, False),
        (ENABLED, ENABLED | {"cloudstate.io/shards": "256"}, True),
        (ENABLED | {"cloudstate.io/shards": "64"}, {}, True),
        ({}, ENABLED | {"cloudstate.io/shards": "64"}, True),
    ],
)
def test_the_number_of_shards_is_fixed(before: dict[str, str], after: dict[str, str], fine: bool) -> None:
    if fine:
        assert admission.check_service(service(after), service(before)) == Answer()
    else:
        assert "fixed for its life" in refusal(admission.check_service, service(after), service(before))


def test_an_annotation_that_has_no_effect_is_warned_about() -> None:
    assert admission.check_service(service({}, {"cloudstate.io/enabled": "true"}), None).warnings == (
        "annotation cloudstate.io/enabled: 'true' has no effect on the Service itself: set it in spec.template.metadata.annotations",
    )


def test_a_store_that_is_not_there_yet_is_warned_about() -> None:
    (warning,) = admission.check_service(service(ENABLED), None, Found("carts", None)).warnings
    assert warning == (
        "no revision starts until this is mended: annotation cloudstate.io/stateful-store: 'carts' must name a StatefulStore "
        "in namespace shop, and there is none"
    )


# Stores and policies ----------------------------------------------------------------------------------------------------


def test_stores_are_judged_by_the_rules_that_pairing_reads_them_with() -> None:
    assert admission.check_store({"metadata": {"name": "carts"}, "spec": {"redis": {"host": "redis"}}}) == Answer()
    assert "spec.redis.host: 'a b' must be" in refusal(admission.check_store, {"metadata": {"name": "carts"}, "spec": {"redis": {"host": "a b"}}})
    (warning,) = admission.check_store({"metadata": {"name": "carts"}, "spec": {"cassandra": {}}}).warnings
    assert "spec.cassandra: is not supported by this release" in warning


def test_policies_are_judged_by_the_rules_that_the_autoscaler_reads_them_with() -> None:
    policy: dict[str, Any] = {"metadata": {"name": "cart"}, "spec": {"scale": {"min": 3, "max": 2}, "windows": {"stable": "5s"}}}
    assert refusal(admission.check_policy, policy) == (
        "AutoscalingPolicy cart: spec.windows.stable: '5s' must be from 6s to 3600s; "
        "AutoscalingPolicy cart: spec.scale.min: 3 must not be above spec.scale.max (2)"
    )
    assert admission.check_policy({"metadata": {"name": "cart"}, "spec": {"scale": {"min": 1}}}) == Answer()


# Reviews ----------------------------------------------------------------------------------------------------------------


def test_the_form_of_answers() -> None:
    operations = [{"op": "add", "path": "/metadata/annotations", "value": {"k": "ä"}}]
    review = admission.allowed("u1", Answer(operations, ("careful",)))
    assert (review["apiVersion"], review["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response = review["response"]
    assert (response["uid"], response["allowed"], response["patchType"], response["warnings"]) == ("u1", True, "JSONPatch", ["careful"])
    assert json.loads(base64.b64decode(response["patch"])) == operations
    assert admission.allowed("u1", Answer())["response"] == {"uid": "u1", "allowed": True}
    assert admission.refused("u1", Refused("why"))["response"] == {
        "uid": "u1", "allowed": False, "status": {"code": 400, "reason": "BadRequest", "message": "why"},
    }  # fmt: skip
