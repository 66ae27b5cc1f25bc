"""The rules of `autoscaling.knative.dev/*` annotations, one sentence each (pure)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cloudstate_core.durations import parse_duration

PREFIX = "autoscaling.knative.dev/"
KPA = "kpa.autoscaling.knative.dev"
HPA = "hpa.autoscaling.knative.dev"
HOUR = 3600.0


def normalised(annotations: Mapping[str, str]) -> dict[str, str]:
    """With Knative's older spellings (`minScale`) under their present names (`min-scale`); the present one wins where both are given."""
    known = {_older(key): key for key in (*_RULES, "metric-aggregation-algorithm")}
    short = {key.removeprefix(PREFIX): value for key, value in annotations.items() if key.startswith(PREFIX)}
    return {**{PREFIX + known[key]: value for key, value in short.items() if key in known}, **annotations}


def _older(key: str) -> str:
    first, *others = key.split("-")
    return first + "".join(word.capitalize() for word in others)


def errors(annotations: Mapping[str, str], config: Mapping[str, float | str | bool] | None = None) -> dict[str, str]:
    """By key (without prefix): the rule that its value breaks. `config` = the values of config-autoscaler that matter, by snake case name."""
    values = {key.removeprefix(PREFIX): value for key, value in normalised(annotations).items()}
    config = config or {}
    found: dict[str, str] = {}
    for key, rule in _RULES.items():
        if key in values and (problem := rule(values[key])):
            found[key] = f"{PREFIX}{key}: {values[key]!r} {problem}"
    _check_class(values, config, found)
    _check_scales(values, config, found)
    return found


def _whole(low: int, high: int = 2**31 - 1) -> Callable[[str], str]:
    def rule(text: str) -> str:
        ok = text.lstrip("-").isdecimal() and low <= int(text) <= high
        return "" if ok else f"must be a whole number from {low} to {high}"

    return rule


def _number(low: float, high: float = float("inf"), also: float | None = None) -> Callable[[str], str]:
    def rule(text: str) -> str:
        try:
            value = float(text)
        except ValueError:
            return "must be a number"
        return "" if low <= value <= high or value == also else f"must be a number from {low:g} to {high:g}"

    return rule


def _duration(low: float, high: float, whole: bool) -> Callable[[str], str]:
    def rule(text: str) -> str:
        try:
            value = parse_duration(text)
        except ValueError as error:
            return f"must be a duration: {error}"
        if not low <= value <= high:
            return f"must be from {low:g} s to {high:g} s"
        return "must be a whole number of seconds" if whole and value != int(value) else ""

    return rule


_RULES: dict[str, Callable[[str], str]] = {
    "min-scale": _whole(0),
    "max-scale": _whole(0),
    "initial-scale": _whole(0),
    "activation-scale": _whole(2),
    "scale-down-delay": _duration(0, HOUR, whole=True),
    "scale-to-zero-pod-retention-period": _duration(0, HOUR, whole=False),
    "window": _duration(6, HOUR, whole=True),
    "target": _number(0.01),
    "target-utilization-percentage": _number(1, 100),
    "target-burst-capacity": _number(0, also=-1),
    "panic-window-percentage": _number(1, 100),
    "panic-threshold-percentage": _number(110, 1000),
}


def _check_class(values: Mapping[str, str], config: Mapping[str, float | str | bool], found: dict[str, str]) -> None:
    """Class, and what only Knative's own classes restrict."""
    name = values.get("class", str(config.get("pod_autoscaler_class", KPA)))
    if name.endswith(".knative.dev") and name not in (KPA, HPA):
        found["class"] = f"{PREFIX}class: {name!r} must not end in .knative.dev: that domain is Knative's"
    metric = values.get("metric")
    if metric is not None and ((name == KPA and metric not in ("concurrency", "rps")) or (name == HPA and not metric)):
        found["metric"] = f"{PREFIX}metric: {metric!r} must be concurrency or rps"
    algorithm = values.get("metric-aggregation-algorithm", "")
    if name == KPA and algorithm not in ("", "linear", "weighted-exponential"):
        found["metric-aggregation-algorithm"] = f"{PREFIX}metric-aggregation-algorithm: {algorithm!r} must be linear or weighted-exponential"


def _check_scales(values: Mapping[str, str], config: Mapping[str, float | str | bool], found: dict[str, str]) -> None:
    """Rules between scales."""

    def number(key: str) -> int | None:
        return int(values[key]) if key in values and key not in found else None

    low, high, activation = number("min-scale"), number("max-scale"), number("activation-scale")
    limit = int(config.get("max_scale_limit", 0))
    if low is not None and high and low > high:
        for key in ("min-scale", "max-scale"):
            found[key] = f"{PREFIX}{key}: {values[key]!r}: min-scale must not be above max-scale"
    if high is not None and limit and not 0 < high <= limit:
        found["max-scale"] = f"{PREFIX}max-scale: {high} must be from 1 to the limit of {limit}"
    if activation is not None and ((low or 0) > activation or (high and activation > high)):
        found["activation-scale"] = f"{PREFIX}activation-scale: {activation} must lie between min-scale and max-scale"
    if number("initial-scale") == 0 and not config.get("allow_zero_initial_scale"):
        found["initial-scale"] = f"{PREFIX}initial-scale: 0 is allowed only with allow-zero-initial-scale in config-autoscaler"
