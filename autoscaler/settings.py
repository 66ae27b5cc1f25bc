"""The settings that a revision is scaled by: annotation, then policy, then config-autoscaler, then built-in default, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoscaler.annotations import PREFIX, normalised
from autoscaler.config import Config
from autoscaler.placement.service import PlacementSettings
from autoscaler.targets import metric_target
from cloudstate_core.durations import parse_duration
from cloudstate_core.policy import Metric, Policy


@dataclass(frozen=True, slots=True)
class Demand:
    """One metric that pods are wanted for. `target` = per pod to aim at, `total` = per pod at most; `server`, `query` = of Prometheus."""

    type: str
    target: float
    total: float
    server: str = ""
    query: str = ""

    @property
    def source(self) -> tuple[str, ...]:
        """What it is measured by: its type, and the server and query of a Prometheus metric."""
        return (self.type, self.server, self.query) if self.query else (self.type,)


@dataclass(frozen=True, slots=True)
class ScaleSettings:
    """Effective values. Times in seconds, bounds of 0 = none."""

    demands: tuple[Demand, ...]
    minimum: int = 0
    maximum: int = 0
    initial: int = 1
    activation: int = 0
    stable_window: float = 60
    panic_percentage: float = 10
    panic_threshold: float = 2.0
    aggregation: str = "linear"
    max_scale_up_rate: float = 1000
    max_scale_down_rate: float = 2
    scale_down_delay: float = 0
    settle_after_up: float = 0
    settle_after_down: float = 0
    enable_zero: bool = True
    grace: float = 30
    retention: float = 0
    burst_capacity: float = 211


def effective(annotations: Mapping[str, str], policy: Policy | None, config: Config | None = None, concurrency: int = 0) -> ScaleSettings:
    """Combine the three sources; annotations and policy have been validated before. `concurrency` = containerConcurrency."""
    config, annotations = config or Config(), normalised(annotations)
    given = policy.values if policy is not None else {}

    def number(key: str, path: str, default: float) -> float:
        text = annotations.get(PREFIX + key) if key else None
        return float(text) if text is not None else float(given.get(path, default))

    def seconds(key: str, path: str, default: float) -> float:
        text = annotations.get(PREFIX + key) if key else None
        return parse_duration(text) if text is not None else float(given.get(path, default))

    activation = int(number("activation-scale", "scale.activation", 0))
    return ScaleSettings(
        demands=_demands(annotations, policy, config, concurrency),
        minimum=int(number("min-scale", "scale.min", config.min_scale)),
        maximum=int(number("max-scale", "scale.max", config.max_scale)),
        initial=int(number("initial-scale", "scale.initial", config.initial_scale)),
        activation=activation if activation > 1 else 0,
        stable_window=seconds("window", "windows.stable", config.stable_window),
        panic_percentage=number("panic-window-percentage", "windows.panicPercentage", config.panic_window_percentage),
        panic_threshold=number("panic-threshold-percentage", "windows.panicThreshold", config.panic_threshold_percentage) / 100,
        aggregation=annotations.get(PREFIX + "metric-aggregation-algorithm") or str(given.get("windows.aggregation", "linear")),
        max_scale_up_rate=number("", "behavior.maxScaleUpRate", config.max_scale_up_rate),
        max_scale_down_rate=number("", "behavior.maxScaleDownRate", config.max_scale_down_rate),
        scale_down_delay=seconds("scale-down-delay", "behavior.scaleDownDelay", config.scale_down_delay),
        settle_after_up=seconds("", "behavior.settleAfterScaleUp", 0),
        settle_after_down=seconds("", "behavior.settleAfterScaleDown", 0),
        enable_zero=bool(given.get("scaleToZero.enabled", config.enable_scale_to_zero)),
        grace=seconds("", "scaleToZero.gracePeriod", config.grace),
        retention=seconds("scale-to-zero-pod-retention-period", "scaleToZero.retention", config.retention),
        burst_capacity=number("target-burst-capacity", "", config.target_burst_capacity),
    )


def _demands(annotations: Mapping[str, str], policy: Policy | None, config: Config, concurrency: int) -> tuple[Demand, ...]:
    """The annotation's metric alone where there is one, else the policy's metrics, else concurrency by default."""
    target = annotations.get(PREFIX + "target")
    metric = annotations.get(PREFIX + "metric") or None  # Knative writes an empty one on classes that are not its own
    percent = annotations.get(PREFIX + "target-utilization-percentage")
    if policy is not None and policy.metrics and target is None and metric is None:
        return tuple(_demand(metric, concurrency) for metric in policy.metrics)
    rps = metric == "rps"
    fraction = float(percent) / 100 if percent is not None else config.target_fraction
    default = config.rps_target_default if rps else config.concurrency_target_default
    wanted = float(target) if target is not None else None
    kind = "RequestsPerSecond" if rps else "Concurrency"
    return (Demand(kind, *metric_target(concurrency, wanted, fraction, default, rps)),)


def _demand(metric: Metric, concurrency: int) -> Demand:
    limit = concurrency if metric.type == "Concurrency" else 0
    target, total = metric_target(limit, metric.target, (metric.utilization or 100) / 100)
    return Demand(metric.type, target, total, metric.server, metric.query)


def placement_settings(policy: Policy | None) -> PlacementSettings:
    """How eagerly shards move, from the policy's `shards`."""
    given = policy.values if policy is not None else {}
    return PlacementSettings(
        tolerance=float(given.get("shards.tolerance", 10)) / 100,
        max_concurrent_moves=int(given.get("shards.maxConcurrentMoves", 4)),
        min_dwell=float(given.get("shards.minDwell", 60)),
    )
