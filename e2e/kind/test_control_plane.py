"""What the product costs a cluster while nothing happens."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

from .conftest import COMPONENTS, LIMIT, Product, until

WINDOW = 20.0
"""Seconds that the use of processors is averaged over, by the kubelet's own time stamps."""


def usage(product: Product) -> dict[str, tuple[float, int, int]]:
    """By container of ours: when the kubelet looked, core nanoseconds used so far, bytes in use."""
    node = json.loads(product.system.kubectl("get", "nodes", "--output", "json"))["items"][0]["metadata"]["name"]
    summary = json.loads(product.system.kubectl("get", "--raw", f"/api/v1/nodes/{node}/proxy/stats/summary"))
    found = {}
    for pod in summary["pods"]:
        if pod["podRef"]["namespace"] == product.system.namespace:
            for container in pod.get("containers") or ():
                cpu, memory = container.get("cpu", {}), container.get("memory", {})
                if "usageCoreNanoSeconds" in cpu and "workingSetBytes" in memory:  # the kubelet does not have all figures at all times
                    looked = datetime.fromisoformat(cpu["time"]).timestamp()
                    found[pod["podRef"]["name"]] = (looked, cpu["usageCoreNanoSeconds"], memory["workingSetBytes"])
    return found


def test_the_idle_control_plane_is_small(product: Product, measured: Any) -> None:
    until(lambda: len(product.system.items("pods")) == len(usage(product)) == len(COMPONENTS), "one pod of each component, with figures")
    first = usage(product)
    last = dict(first)
    deadline = time.monotonic() + LIMIT + WINDOW
    while any(last[pod][0] - first[pod][0] < WINDOW for pod in first):
        assert time.monotonic() < deadline, "the kubelet has no newer figures"
        time.sleep(1.0)
        last |= usage(product)
        assert first.keys() == last.keys(), "a pod of the control plane was replaced while nothing happened"
    cores = sum((last[pod][1] - first[pod][1]) / 1e9 / (last[pod][0] - first[pod][0]) for pod in first)
    measured("idle control plane: memory", [sum(use[2] for use in last.values()) / 1e6], "MB", bar=300)
    measured("idle control plane: processors", [cores], "cores", bar=0.05)
    assert all(use[2] > 0 for use in last.values())
