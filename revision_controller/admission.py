"""What admission answers (pure): revisions are paired, and what breaks a rule is refused in sentences that a person understands."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloudstate_core import annotations as rules
from cloudstate_core.policy import PolicyError, parse_policy
from revision_controller.pairing import PairingError, ProxySettings, paired, patch
from revision_controller.stores import NotSupported, Store, StoreError, store_of

Object = Mapping[str, Any]

MAX_SCALE = ("autoscaling.knative.dev/max-scale", "autoscaling.knative.dev/maxScale")
"""Both spellings that Knative takes."""
MAY_CHANGE = (rules.POLICY, rules.LOCAL_COMMAND)
"""Our keys that a revision's pods were not made with."""


class Refused(Exception):
    """An object is refused; the text says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """A StatefulStore as it was looked up: its spec, or None when there is none."""

    name: str
    spec: Object | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A request may pass: changed by `patch`, with `warnings` for the person who made it."""

    patch: Sequence[Mapping[str, Any]] = ()
    warnings: tuple[str, ...] = ()


def annotations_of(found: Object | None) -> Mapping[str, str]:
    """An object's annotations, or a template's."""
    annotations: Mapping[str, str] = ((found or {}).get("metadata") or {}).get("annotations") or {}
    return annotations


def template_of(service: Object | None) -> Object:
    """What a Knative Service makes its revisions from."""
    template: Object = ((service or {}).get("spec") or {}).get("template") or {}
    return template


def store_name(annotations: Mapping[str, str], default: str) -> str:
    """The store that a revision with these annotations gets; '' when neither it nor the installation names one."""
    return annotations.get(rules.STORE) or default


# Revisions --------------------------------------------------------------------------------------------------------------


def pair(revision: Object, found: Found, proxy: ProxySettings) -> Answer:
    """The patch that pairs a revision. Refused when it breaks a rule or its store cannot be used."""
    check_annotations(annotations_of(revision), known=(rules.PAIRED,))
    if not rules.enabled(annotations_of(revision)):
        return Answer()
    try:
        return Answer(patch(revision, paired(revision, usable_store(revision, found), proxy)))
    except PairingError as error:
        raise Refused(str(error)) from error


def usable_store(revision: Object, found: Found) -> Store:
    """The store of a revision. Refused when it names none, one that is not there, or one that it cannot use."""
    annotations = annotations_of(revision)
    namespace = (revision.get("metadata") or {}).get("namespace", "")
    if not found.name:
        raise Refused(f"annotation {rules.STORE}: must name a StatefulStore in namespace {namespace}; config-cloudstate gives no default")
    if found.spec is None:
        raise Refused(f"annotation {rules.STORE}: {found.name!r} must name a StatefulStore in namespace {namespace}, and there is none")
    try:
        store = store_of(found.name, found.spec, annotations)
    except StoreError as error:
        raise Refused(str(error)) from error
    if not store.shared and "1" not in (annotations.get(key) for key in MAX_SCALE):
        raise Refused(f"StatefulStore {store.name}: inMemory keeps entities in one pod only: set the annotation {MAX_SCALE[0]} to 1")
    return store


def check_revision(new: Object, old: Object | None) -> Answer:
    """A revision's annotations; those that its pods were made with never change."""
    after = annotations_of(new)
    check_annotations(after, known=(rules.PAIRED,))
    before = annotations_of(old)
    for key in sorted(set(before) | set(after)) if old is not None else ():
        if rules.is_ours(key) and key not in MAY_CHANGE and before.get(key) != after.get(key):
            raise Refused(
                f"annotation {key}: {after.get(key)!r} cannot replace {before.get(key)!r} on a revision: its pods were made with that; "
                "change the service's template, which makes a new revision"
            )
    return Answer()


# Services, stores, policies ---------------------------------------------------------------------------------------------


def check_service(new: Object, old: Object | None, found: Found | None = None) -> Answer:
    """A Knative Service's own annotations and its template's; the number of shards is fixed once the service exists.

    `found` = the store that its next revision would get, if it was looked up.
    """
    own, template = annotations_of(new), annotations_of(template_of(new))
    check_annotations(template, own)
    before, after = _shards(old), _shards(new)
    if before is not None and after is not None and before != after:
        raise Refused(f"annotation {rules.SHARDS}: {after!r} cannot be changed: the service has {before} shards, fixed for its life")
    return Answer(warnings=(*_without_effect(own, template), *_store_warnings(new, found)))


def _shards(service: Object | None) -> str | None:
    """Shards of a service that has a proxy or says how many; None for one that does neither."""
    annotations = annotations_of(template_of(service))
    return annotations.get(rules.SHARDS, str(rules.DEFAULT_SHARDS) if rules.enabled(annotations) else None)


def _without_effect(own: Mapping[str, str], template: Mapping[str, str]) -> list[str]:
    """Annotations that stand on the service only: revisions are made from the template."""
    return [
        f"annotation {key}: {value!r} has no effect on the Service itself: set it in spec.template.metadata.annotations"
        for key, value in sorted(own.items())
        if rules.is_ours(key) and key != rules.LOCAL_COMMAND and template.get(key) != value
    ]


def _store_warnings(service: Object, found: Found | None) -> list[str]:
    if found is None:
        return []
    template = template_of(service)
    try:
        usable_store({"metadata": {**(template.get("metadata") or {}), "namespace": service["metadata"].get("namespace", "")}}, found)
    except Refused as problem:
        return [f"no revision starts until this is mended: {problem}"]
    return []


def check_store(store: Object) -> Answer:
    """A StatefulStore; a kind that only later releases support is taken with a warning, and its status says so too."""
    try:
        store_of((store.get("metadata") or {}).get("name", ""), store.get("spec") or {})
    except NotSupported as error:
        return Answer(warnings=(str(error),))
    except StoreError as error:
        raise Refused(str(error)) from error
    return Answer()


def check_policy(policy: Object) -> Answer:
    """An AutoscalingPolicy, by the rules that the autoscaler reads it with."""
    try:
        parse_policy(policy)
    except PolicyError as error:
        raise Refused("; ".join(str(error).splitlines())) from error
    return Answer()


def check_annotations(*annotations: Mapping[str, str], known: Sequence[str] = ()) -> None:
    """Refused with everything that is wrong with the annotations of our domains, each fault told once."""
    if problems := dict.fromkeys(problem for some in annotations for problem in rules.errors(some, known)):
        raise Refused("; ".join(problems))


# Answers ----------------------------------------------------------------------------------------------------------------


def allowed(uid: str, answer: Answer) -> dict[str, Any]:
    """The AdmissionReview that lets a request pass, changed by a JSON patch if there is one."""
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    if answer.patch:
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(list(answer.patch)).encode()).decode()}
    if answer.warnings:
        response["warnings"] = list(answer.warnings)
    return _review(response)


def refused(uid: str, why: Refused) -> dict[str, Any]:
    """The AdmissionReview that refuses a request."""
    return _review({"uid": uid, "allowed": False, "status": {"code": 400, "reason": "BadRequest", "message": str(why)}})


def _review(response: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
