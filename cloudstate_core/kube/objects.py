"""Projections of Kubernetes and Knative objects: the fields that this product reads, no others.

Absent fields have the API's zero values, so that reading never needs a check for None where Kubernetes means "empty".
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec


def timestamp(at: datetime, precision: str = "seconds") -> str:
    """A time in UTC as the API writes it."""
    return at.isoformat(timespec=precision).replace("+00:00", "Z")


class Struct(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """A part of an object, only ever read."""


class OwnerReference(Struct, frozen=True):
    """Who an object belongs to."""

    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False
    api_version: str = ""


class Metadata(Struct, frozen=True):
    """What every object carries."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creation_timestamp: str | None = ""
    deletion_timestamp: str = ""
    owner_references: tuple[OwnerReference, ...] = ()

    @property
    def key(self) -> str:
        """'<namespace>/<name>', or the name alone of what has no namespace."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Object(Struct, frozen=True):
    """An object of which only the metadata matters."""

    metadata: Metadata = Metadata()


class Condition(Struct, frozen=True):
    """One condition of a status."""

    type: str
    status: str = "Unknown"
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = ""


def condition(conditions: tuple[Condition, ...], kind: str) -> Condition | None:
    """The condition of a type, or None."""
    return next((c for c in conditions if c.type == kind), None)


class ConfigMap(Object, frozen=True):
    """A ConfigMap."""

    data: dict[str, str] = {}


class Secret(Object, frozen=True):
    """A Secret; values are base64 text, as the API sends them."""

    data: dict[str, str] = {}
    type: str = ""


class ClientConfig(Struct, frozen=True):
    """How a webhook is reached: the part that its server keeps."""

    ca_bundle: str = ""


class AdmissionWebhook(Struct, frozen=True):
    """One webhook of a configuration."""

    name: str = ""
    client_config: ClientConfig = ClientConfig()


class WebhookConfiguration(Object, frozen=True):
    """A MutatingWebhookConfiguration or ValidatingWebhookConfiguration."""

    webhooks: tuple[AdmissionWebhook, ...] = ()


class LeaseSpec(Struct, frozen=True):
    """Who leads, and since when."""

    holder_identity: str | None = ""
    lease_duration_seconds: int | None = 0
    renew_time: str | None = ""
    acquire_time: str | None = ""
    lease_transitions: int | None = 0


class Lease(Object, frozen=True):
    """A Lease of coordination.k8s.io."""

    spec: LeaseSpec = LeaseSpec()


# Pods and their scale ---------------------------------------------------------------------------------------------------


class ContainerState(Struct, frozen=True):
    """Why a container waits or ended, if it did."""

    reason: str = ""
    message: str = ""


class ContainerStates(Struct, frozen=True):
    """The state a container is in."""

    waiting: ContainerState | None = None
    terminated: ContainerState | None = None


class ContainerStatus(Struct, frozen=True):
    """One container of a pod."""

    name: str = ""
    ready: bool = False
    restart_count: int = 0
    state: ContainerStates = ContainerStates()


class PodStatus(Struct, frozen=True):
    """A pod as the kubelet sees it."""

    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    conditions: tuple[Condition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()


class Pod(Object, frozen=True):
    """A Pod."""

    status: PodStatus = PodStatus()

    @property
    def ready(self) -> bool:
        """True when the kubelet says Ready and nobody has asked the pod to end."""
        found = condition(self.status.conditions, "Ready")
        return found is not None and found.status == "True" and not self.metadata.deletion_timestamp

    @property
    def ended(self) -> bool:
        """True when no process of the pod runs any more."""
        return self.status.phase in ("Succeeded", "Failed")


class ScaleSpec(Struct, frozen=True):
    """Wanted replicas."""

    replicas: int = 0


class Deployment(Object, frozen=True):
    """A Deployment: its replicas."""

    spec: ScaleSpec = ScaleSpec()


class Port(Struct, frozen=True):
    """A port of a Service or EndpointSlice."""

    name: str = ""
    port: int = 0
    target_port: int | str = 0
    app_protocol: str = ""


class ServiceSpec(Struct, frozen=True):
    """Where a Service leads."""

    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    ports: tuple[Port, ...] = ()
    selector: dict[str, str] = {}


class Service(Object, frozen=True):
    """A core Service."""

    spec: ServiceSpec = ServiceSpec()


class EndpointConditions(Struct, frozen=True):
    """Whether an address takes calls; absent = yes."""

    ready: bool | None = None


class Endpoint(Struct, frozen=True):
    """Addresses of one backend."""

    addresses: tuple[str, ...] = ()
    conditions: EndpointConditions = EndpointConditions()


class EndpointSlice(Object, frozen=True):
    """An EndpointSlice."""

    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[Port, ...] = ()


class EndpointAddress(Struct, frozen=True):
    """One address of Endpoints."""

    ip: str = ""


class EndpointSubset(Struct, frozen=True):
    """Addresses that have the same ports."""

    addresses: tuple[EndpointAddress, ...] = ()
    ports: tuple[Port, ...] = ()


class Endpoints(Object, frozen=True):
    """Endpoints, the form of an EndpointSlice that older ingresses read."""

    subsets: tuple[EndpointSubset, ...] = ()


# Knative ----------------------------------------------------------------------------------------------------------------


class RevisionSpec(Struct, frozen=True):
    """What a revision asks for."""

    container_concurrency: int | None = 0
    timeout_seconds: int | None = 300


class ConditionsStatus(Struct, frozen=True):
    """A status of which only the conditions matter."""

    conditions: tuple[Condition, ...] = ()


class Revision(Object, frozen=True):
    """A Knative Revision."""

    spec: RevisionSpec = RevisionSpec()
    status: ConditionsStatus = ConditionsStatus()


class TargetReference(Struct, frozen=True):
    """The Deployment that is scaled."""

    kind: str = ""
    name: str = ""


class PodAutoscalerSpec(Struct, frozen=True):
    """What a revision asks of its autoscaler."""

    container_concurrency: int = 0
    scale_target_ref: TargetReference = TargetReference()
    reachability: str = ""
    protocol_type: str = ""


class PodAutoscalerStatus(Struct, frozen=True):
    """What the class's controller wrote."""

    observed_generation: int = 0
    service_name: str = ""
    metrics_service_name: str = ""
    desired_scale: int | None = None
    actual_scale: int | None = None
    conditions: tuple[Condition, ...] = ()


class PodAutoscaler(Object, frozen=True):
    """A PodAutoscaler of autoscaling.internal.knative.dev."""

    spec: PodAutoscalerSpec = PodAutoscalerSpec()
    status: PodAutoscalerStatus = PodAutoscalerStatus()


class TrafficTarget(Struct, frozen=True):
    """A share of a route's traffic."""

    revision_name: str = ""
    percent: int | None = 0
    tag: str = ""


class RouteStatus(Struct, frozen=True):
    """Where a route leads at present."""

    traffic: tuple[TrafficTarget, ...] = ()
    conditions: tuple[Condition, ...] = ()


class Route(Object, frozen=True):
    """A Knative Route."""

    status: RouteStatus = RouteStatus()


# Ours -------------------------------------------------------------------------------------------------------------------


class AutoscalingPolicy(Object, frozen=True):
    """An AutoscalingPolicy; its spec is checked and read by the autoscaler."""

    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}


class StoreStatus(ConditionsStatus, frozen=True):
    """Whether a store can be used, as of one generation of its spec."""

    observed_generation: int = 0


class StatefulStore(Object, frozen=True):
    """A StatefulStore; its spec is checked and read by the revision controller."""

    spec: dict[str, Any] = {}
    status: StoreStatus = StoreStatus()


class ShardEntry(Struct, frozen=True, omit_defaults=True):
    """One shard as the leader keeps it."""

    owner: str = ""
    next: str = ""
    since: int = 0


class ShardMapSpec(Struct, frozen=True):
    """A map as the leader keeps it."""

    service: str = ""
    generation: int = 0
    journal_id: str = msgspec.field(default="", name="journalID")
    shards: tuple[ShardEntry, ...] = ()
    methods: str = ""


class ShardMap(Object, frozen=True):
    """A ShardMap."""

    spec: ShardMapSpec = ShardMapSpec()
