"""Knative's `config-autoscaler`: keys, defaults, rules (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoscaler.annotations import KPA
from cloudstate_core.durations import parse_duration


class ConfigError(ValueError):
    """A value of config-autoscaler breaks its rule: names key, value and rule."""


@dataclass(frozen=True, slots=True)
class Config:
    """Cluster-wide defaults. Times in seconds, `target_fraction` of the target that a pod is loaded to."""

    target_fraction: float = 0.7
    concurrency_target_default: float = 100
    rps_target_default: float = 200
    target_burst_capacity: float = 211
    stable_window: float = 60
    panic_window_percentage: float = 10
    panic_threshold_percentage: float = 200
    max_scale_up_rate: float = 1000
    max_scale_down_rate: float = 2
    enable_scale_to_zero: bool = True
    grace: float = 30
    retention: float = 0
    scale_down_delay: float = 0
    pod_autoscaler_class: str = KPA
    activator_capacity: float = 100
    initial_scale: int = 1
    allow_zero_initial_scale: bool = False
    min_scale: int = 0
    max_scale: int = 0
    max_scale_limit: int = 0


_FIELDS = {
    "container-concurrency-target-percentage": ("target_fraction", "percent"),
    "container-concurrency-target-default": ("concurrency_target_default", "float"),
    "requests-per-second-target-default": ("rps_target_default", "float"),
    "target-burst-capacity": ("target_burst_capacity", "float"),
    "stable-window": ("stable_window", "duration"),
    "panic-window-percentage": ("panic_window_percentage", "float"),
    "panic-threshold-percentage": ("panic_threshold_percentage", "float"),
    "max-scale-up-rate": ("max_scale_up_rate", "float"),
    "max-scale-down-rate": ("max_scale_down_rate", "float"),
    "enable-scale-to-zero": ("enable_scale_to_zero", "bool"),
    "scale-to-zero-grace-period": ("grace", "duration"),
    "scale-to-zero-pod-retention-period": ("retention", "duration"),
    "scale-down-delay": ("scale_down_delay", "duration"),
    "pod-autoscaler-class": ("pod_autoscaler_class", "text"),
    "activator-capacity": ("activator_capacity", "float"),
    "initial-scale": ("initial_scale", "int"),
    "allow-zero-initial-scale": ("allow_zero_initial_scale", "bool"),
    "min-scale": ("min_scale", "int"),
    "max-scale": ("max_scale", "int"),
    "max-scale-limit": ("max_scale_limit", "int"),
}


def parse_config(data: Mapping[str, str]) -> Config:
    """Read the ConfigMap's data; keys that are not the autoscaler's (`_example`) are left alone. ConfigError names what breaks a rule."""
    for key, text in data.items():
        if key in _FIELDS and not isinstance(text, str):
            raise ConfigError(f"config-autoscaler: {key}: {text!r} must be a text: quote it, as in every ConfigMap")
    values = {field: _parse(key, data[key], kind) for key, (field, kind) in _FIELDS.items() if key in data}
    config = Config(**values)  # type: ignore[arg-type]
    _validate(config)
    return config


def _parse(key: str, text: str, kind: str) -> float | int | bool | str:
    try:
        match kind:
            case "float":
                return float(text)
            case "percent":
                value = float(text)
                return value if value <= 1 else value / 100
            case "int":
                return int(text)
            case "duration":
                return parse_duration(text)
            case "bool":
                return {"true": True, "false": False}[text.lower()]
            case _:
                return text
    except (ValueError, KeyError) as error:
        raise ConfigError(f"config-autoscaler: {key}: {text!r} is not a {kind}") from error


def _validate(c: Config) -> None:
    """One sentence a rule."""
    rules = (
        (0 < c.target_fraction <= 1, "container-concurrency-target-percentage", c.target_fraction, "must be above 0 and at most 100 %"),
        (c.target_fraction * c.concurrency_target_default >= 0.01, "container-concurrency-target-default", c.concurrency_target_default,
         "times the percentage must be at least 0.01"),
        (c.rps_target_default >= 0.01, "requests-per-second-target-default", c.rps_target_default, "must be at least 0.01"),
        (c.target_burst_capacity >= 0 or c.target_burst_capacity == -1, "target-burst-capacity", c.target_burst_capacity, "must be -1 or at least 0"),
        (6 <= c.stable_window <= 3600 and c.stable_window == int(c.stable_window), "stable-window", c.stable_window,
         "must be whole seconds from 6s to 1h"),
        (1 <= c.panic_window_percentage <= 100, "panic-window-percentage", c.panic_window_percentage, "must be from 1 to 100"),
        (c.panic_threshold_percentage > 100, "panic-threshold-percentage", c.panic_threshold_percentage, "must be above 100"),
        (c.max_scale_up_rate > 1, "max-scale-up-rate", c.max_scale_up_rate, "must be above 1"),
        (c.max_scale_down_rate > 1, "max-scale-down-rate", c.max_scale_down_rate, "must be above 1"),
        (c.grace > 0, "scale-to-zero-grace-period", c.grace, "must be above 0"),
        (c.retention >= 0, "scale-to-zero-pod-retention-period", c.retention, "must be at least 0"),
        (c.scale_down_delay >= 0 and c.scale_down_delay == int(c.scale_down_delay), "scale-down-delay", c.scale_down_delay,
         "must be whole seconds, at least 0"),
        (c.activator_capacity >= 1, "activator-capacity", c.activator_capacity, "must be at least 1"),
        (c.initial_scale >= (0 if c.allow_zero_initial_scale else 1), "initial-scale", c.initial_scale,
         "must be at least 1 (0 with allow-zero-initial-scale)"),
        (c.min_scale >= 0, "min-scale", c.min_scale, "must be at least 0"),
        (c.max_scale >= 0, "max-scale", c.max_scale, "must be at least 0"),
        (c.max_scale == 0 or c.min_scale <= c.max_scale, "min-scale", c.min_scale, "must not be above max-scale"),
        (c.max_scale_limit >= 0, "max-scale-limit", c.max_scale_limit, "must be at least 0"),
        (c.max_scale_limit == 0 or 1 <= c.max_scale <= c.max_scale_limit, "max-scale", c.max_scale, "must be from 1 to max-scale-limit"),
    )  # fmt: skip
    for holds, key, value, rule in rules:
        if not holds:
            raise ConfigError(f"config-autoscaler: {key}: {value!r} {rule}")
