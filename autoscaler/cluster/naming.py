"""Names, labels and ports that the autoscaler shares with Knative and with the other components."""

from __future__ import annotations

from autoscaler.annotations import PREFIX
from cloudstate_core.annotations import DEFAULT_SHARDS, PAIRED, SHARDS
from cloudstate_core.kube.objects import PodAutoscaler

CLASS = "concurrency.cloudstate.io"
CLASS_KEY = f"{PREFIX}class"
SERVICE, SERVICE_UID, CONFIGURATION, REVISION, REVISION_UID = (
    f"serving.knative.dev/{name}" for name in ("service", "serviceUID", "configuration", "revision", "revisionUID")
)
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
MANAGER = "cloudstate-autoscaler"
MANAGED_BY = "app.kubernetes.io/managed-by"
"""Label of the Services that the autoscaler makes."""
SLICE_MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
"""The same of its EndpointSlices."""
HTTP1, H2C = 8012, 8013
"""Ports of queue-proxy and of activators."""


def is_ours(pa: PodAutoscaler) -> bool:
    """True for a PodAutoscaler of our class."""
    return pa.metadata.annotations.get(CLASS_KEY) == CLASS


def is_paired(pa: PodAutoscaler) -> bool:
    """True when the revision's pods have a stateful proxy."""
    return PAIRED in pa.metadata.annotations


def service_of(pa: PodAutoscaler) -> str:
    """'<namespace>/<name>' of the Knative Service; of the Configuration or the revision for what was made without one."""
    labels = pa.metadata.labels
    return f"{pa.metadata.namespace}/{labels.get(SERVICE) or labels.get(CONFIGURATION) or pa.metadata.name}"


def shards_of(pa: PodAutoscaler) -> int:
    """Shard count of the service; admission has checked the annotation."""
    text = pa.metadata.annotations.get(SHARDS, "")
    return int(text) if text.isdecimal() and int(text) > 0 else DEFAULT_SHARDS


def data_port(pa: PodAutoscaler) -> int:
    """Where queue-proxy and activators take this revision's protocol."""
    return H2C if pa.spec.protocol_type == "h2c" else HTTP1


def host_port(address: str, port: int) -> str:
    """'<address>:<port>', with brackets around an IPv6 address."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
