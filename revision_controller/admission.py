"""What admission answers (pure): revisions are paired, and what breaks a rule is refused in sentences that a person understands."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloudstate_core import annotations as rules
from revision_controller.pairing import PairingError, ProxySettings, paired, patch
from revision_controller.stores import Store, StoreError, store_of


class Refused(Exception):
    """An object is refused; the text says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """A StatefulStore as it was looked up: its spec, or None when there is none."""

    name: str
    spec: Mapping[str, Any] | None


def annotations_of(revision: Mapping[str, Any]) -> Mapping[str, str]:
    """An object's annotations."""
    found: Mapping[str, str] = (revision.get("metadata") or {}).get("annotations") or {}
    return found


def pair(revision: Mapping[str, Any], found: Found, proxy: ProxySettings) -> list[dict[str, Any]]:
    """The patch that pairs a revision. Refused when it breaks a rule or its store cannot be used."""
    check_annotations(annotations_of(revision), paired_too=True)
    try:
        return patch(revision, paired(revision, usable_store(revision, found), proxy))
    except PairingError as error:
        raise Refused(str(error)) from error


def usable_store(revision: Mapping[str, Any], found: Found) -> Store:
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
    if not store.shared and annotations.get("autoscaling.knative.dev/max-scale") != "1":
        raise Refused(
            f"StatefulStore {store.name}: inMemory keeps entities in one pod only: set the annotation autoscaling.knative.dev/max-scale to 1"
        )
    return store


def check_annotations(annotations: Mapping[str, str], paired_too: bool = False) -> None:
    """Refused with everything that is wrong with the annotations of our domains."""
    if problems := rules.errors(annotations, (rules.PAIRED,) if paired_too else ()):
        raise Refused("; ".join(problems))


def check_service(new: Mapping[str, Any], old: Mapping[str, Any] | None) -> None:
    """A Knative Service's own annotations and its template's; the number of shards is fixed once the service exists."""
    for where in (new, (new.get("spec") or {}).get("template") or {}):
        check_annotations(annotations_of(where))
    before, after = (_shards(old) if old is not None else None), _shards(new)
    if before is not None and after is not None and before != after:
        raise Refused(f"annotation {rules.SHARDS}: {after!r} cannot be changed: the service has {before} shards, fixed for its life")


def _shards(service: Mapping[str, Any]) -> str | None:
    """Shards of a service that has a proxy; None for one that has not."""
    template = (service.get("spec") or {}).get("template") or {}
    annotations = {**annotations_of(service), **annotations_of(template)}
    return annotations.get(rules.SHARDS, str(rules.DEFAULT_SHARDS)) if rules.enabled(annotations) else None


def allowed(uid: str, operations: list[dict[str, Any]] | None) -> dict[str, Any]:
    """The AdmissionReview that lets a request pass, changed by a JSON patch if there is one."""
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    if operations:
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(operations).encode()).decode()}
    return _review(response)


def refused(uid: str, why: Refused) -> dict[str, Any]:
    """The AdmissionReview that refuses a request."""
    return _review({"uid": uid, "allowed": False, "status": {"code": 400, "reason": "BadRequest", "message": str(why)}})


def _review(response: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
