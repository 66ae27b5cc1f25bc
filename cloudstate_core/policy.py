"""AutoscalingPolicy: from YAML to a value; everything that is wrong is told at once, with the field's path, the value and the rule.

The autoscaler, admission and the local runner read policies by these rules, so that none takes what another refuses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloudstate_core.durations import parse_duration

API_VERSION, KIND = "autoscaling.cloudstate.io/v1alpha1", "AutoscalingPolicy"
METRIC_TYPES = ("Concurrency", "RequestsPerSecond", "FunctionConcurrency", "Prometheus")


class PolicyError(ValueError):
    """A policy is wrong; each line is one error."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One demand: `target` per pod, loaded to `utilization` percent."""

    type: str
    target: float
    utilization: float | None = None
    query: str = ""
    server: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy's fields by path (`windows.stable`), as given: what is not given is not there, and a lower precedence decides."""

    name: str
    labels: Mapping[str, str]
    metrics: tuple[Metric, ...] = ()
    values: Mapping[str, float | bool | str] = field(default_factory=dict)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """True when the selector names at least one label and all of them fit."""
        return bool(self.labels) and all(labels.get(key) == value for key, value in self.labels.items())


def _number(low: float, high: float, whole: bool = False) -> tuple[str, float, float, bool]:
    return ("number", low, high, whole)


_INFINITE = float("inf")
_SCHEMA: dict[str, tuple[Any, ...]] = {
    "scale.min": _number(0, _INFINITE, whole=True),
    "scale.max": _number(0, _INFINITE, whole=True),
    "scale.initial": _number(0, _INFINITE, whole=True),
    "scale.activation": _number(1, _INFINITE, whole=True),
    "windows.stable": ("duration", 6, 3600),
    "windows.panicPercentage": _number(1, 100),
    "windows.panicThreshold": _number(110, 1000),
    "windows.aggregation": ("choice", "linear", "weighted-exponential"),
    "behavior.maxScaleUpRate": _number(1.000001, _INFINITE),
    "behavior.maxScaleDownRate": _number(1.000001, _INFINITE),
    "behavior.scaleDownDelay": ("duration", 0, 3600),
    "behavior.settleAfterScaleUp": ("duration", 0, 3600),
    "behavior.settleAfterScaleDown": ("duration", 0, 3600),
    "scaleToZero.enabled": ("bool",),
    "scaleToZero.gracePeriod": ("duration", 0.001, 3600),
    "scaleToZero.retention": ("duration", 0, 3600),
    "shards.tolerance": _number(1, 100),
    "shards.maxConcurrentMoves": _number(1, 1000, whole=True),
    "shards.minDwell": ("duration", 0, 3600),
}


def parse_policy(document: Mapping[str, Any]) -> Policy:
    """Read one AutoscalingPolicy document; apiVersion and kind may be left out. PolicyError lists everything that is wrong."""
    if not isinstance(document, Mapping):
        raise PolicyError(f"AutoscalingPolicy: {document!r} must be an object")
    problems = _frame(document)
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    where = f"AutoscalingPolicy {name or '(without a name)'}"
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name):
        problems.append("metadata.name: must be set, in lower-case letters, digits and '-'")
    spec = document.get("spec")
    if not isinstance(spec, Mapping):
        spec = {}
        problems.append("spec: must be an object")
    values = _values(spec, problems)
    metrics = _metrics(spec.get("metrics", []), problems)
    labels = _labels(spec.get("selector", {}), problems)
    low, high = values.get("scale.min", 0), values.get("scale.max", 0)
    if high and low > high:  # type: ignore[operator]
        problems.append(f"spec.scale.min: {low:g} must not be above spec.scale.max ({high:g})")
    if problems:
        raise PolicyError("\n".join(f"{where}: {problem}" for problem in problems))
    return Policy(str(name), labels, metrics, values)


def _frame(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with a document before its content."""
    problems = [
        f"{key}: {document[key]!r} must be {wanted}"
        for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND))
        if document.get(key, wanted) != wanted
    ]
    known = ("apiVersion", "kind", "metadata", "spec", "status")
    return problems + [f"{key}: is not a field; fields are {', '.join(known)}" for key in document if key not in known]


def _values(spec: Mapping[str, Any], problems: list[str]) -> dict[str, float | bool | str]:
    """The scalar fields of all groups, by path."""
    groups = {path.split(".")[0] for path in _SCHEMA}
    values: dict[str, float | bool | str] = {}
    for group, fields in spec.items():
        if group in ("metrics", "selector"):
            continue
        if group not in groups:
            problems.append(f"spec.{group}: is not a field; fields are {', '.join(sorted(groups | {'metrics', 'selector'}))}")
        elif not isinstance(fields, Mapping):
            problems.append(f"spec.{group}: {fields!r} must be an object")
        else:
            for key, value in fields.items():
                _value(f"{group}.{key}", value, values, problems)
    return values


def _value(path: str, value: Any, values: dict[str, float | bool | str], problems: list[str]) -> None:
    rule = _SCHEMA.get(path)
    if rule is None:
        group = path.split(".")[0]
        known = ", ".join(p.split(".")[1] for p in _SCHEMA if p.startswith(group + "."))
        problems.append(f"spec.{path}: is not a field; fields of spec.{group} are {known}")
        return
    parsed, problem = _checked(rule, value)
    if problem:
        problems.append(f"spec.{path}: {value!r} {problem}")
    else:
        values[path] = parsed


def _checked(rule: tuple[Any, ...], value: Any) -> tuple[Any, str]:
    """`(parsed, '')`, or `(None, problem)`."""
    match rule[0]:
        case "bool":
            return value, "" if isinstance(value, bool) else "must be true or false"
        case "choice":
            return value, "" if value in rule[1:] else f"must be one of {', '.join(rule[1:])}"
        case "duration":
            try:
                seconds = parse_duration(str(value))
            except ValueError as error:
                return None, f"must be a duration: {error}"
            return seconds, "" if rule[1] <= seconds <= rule[2] else f"must be from {rule[1]:g}s to {rule[2]:g}s"
    _, low, high, whole = rule
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, "must be a number"
    if not _finite(value):
        return None, "must be a finite number"
    if whole and value != int(value):
        return None, "must be a whole number"
    if not low <= value <= high:
        return None, f"must be at least {low:g}" if high == _INFINITE else f"must be from {low:g} to {high:g}"
    return value, ""


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _metrics(given: Any, problems: list[str]) -> tuple[Metric, ...]:
    if not isinstance(given, list):
        problems.append(f"spec.metrics: {given!r} must be a list")
        return ()
    return tuple(metric for n, entry in enumerate(given) if (metric := _metric(f"spec.metrics[{n}]", entry, problems)))


def _metric(where: str, entry: Any, problems: list[str]) -> Metric | None:
    if not isinstance(entry, Mapping):
        problems.append(f"{where}: {entry!r} must be an object")
        return None
    before = len(problems)
    fields = {"type", "target", "utilization", "query", "server"}
    problems += [f"{where}.{key}: is not a field; fields are {', '.join(sorted(fields))}" for key in entry if key not in fields]
    kind, target, utilization = entry.get("type"), entry.get("target"), entry.get("utilization")
    if kind not in METRIC_TYPES:
        problems.append(f"{where}.type: {kind!r} must be one of {', '.join(METRIC_TYPES)}")
    if _checked(_number(0.01, _INFINITE), target)[1]:
        problems.append(f"{where}.target: {target!r} must be a number of at least 0.01")
    if utilization is not None and _checked(_number(1, 100), utilization)[1]:
        problems.append(f"{where}.utilization: {utilization!r} must be a number from 1 to 100")
    if kind == "Prometheus" and not (entry.get("query") and entry.get("server")):
        problems.append(f"{where}: a Prometheus metric needs query and server")
    problems += [f"{where}.{key}: {entry[key]!r} must be a text" for key in ("query", "server") if not isinstance(entry.get(key, ""), str)]
    if len(problems) > before:
        return None
    return Metric(str(kind), float(target), utilization, entry.get("query", ""), entry.get("server", ""))  # type: ignore[arg-type]


def _labels(selector: Any, problems: list[str]) -> dict[str, str]:
    labels = selector.get("matchLabels", {}) if isinstance(selector, Mapping) else None
    if not isinstance(labels, Mapping) or set(selector) - {"matchLabels"}:
        problems.append(f"spec.selector: {selector!r} must be an object with matchLabels")
        return {}
    return {str(key): str(value) for key, value in labels.items()}
