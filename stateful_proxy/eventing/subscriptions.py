"""Which methods of a function consume the events of which entities, as the option `cloudstate.eventing` of its methods declares (pure).

Subscriptions with the same source and consumer group are one consumer: each event goes to one of their methods, chosen by its type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf import descriptor_pb2

from cloudstate_core.pb.cloudstate import eventing_pb2
from stateful_proxy.service import InvalidSpec, MethodInfo, ServiceModel

ANY = "google.protobuf.Any"
_NOT_PROTOBUF = ("p.", "json.")
"""Type URLs of these hosts name no message type."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One consumer of the events of one entity type."""

    persistence_id: str
    group: str
    methods: Mapping[str, MethodInfo]
    """By their input types."""

    @property
    def consumer(self) -> str:
        """Name of its cursor in the journal."""
        return f"{self.group}/{self.persistence_id}"

    def method_for(self, type_url: str) -> MethodInfo | None:
        """The method that takes events of a type: the one with that input, else the one that takes anything; None: there is none."""
        anything = self.methods.get(ANY)
        if type_url.startswith(_NOT_PROTOBUF):
            return anything
        return self.methods.get(type_url.rpartition("/")[2], anything)


def event_log_subscriptions(model: ServiceModel) -> Sequence[Subscription]:
    """The consumers that a function declares. InvalidSpec when it is not clear which method an event goes to."""
    found: dict[tuple[str, str], dict[str, MethodInfo]] = {}
    for method in model.methods.values():
        source: eventing_pb2.EventSource = getattr(eventing_of(model, method), "in")
        if source.WhichOneof("source") != "event_log":
            continue
        where = f"{method.service}.{method.name}"
        if not source.event_log:
            raise InvalidSpec(f"{where}: eventing.in.event_log is empty: it must be the persistence id of an event sourced entity")
        methods = found.setdefault((source.event_log, source.consumer_group or method.service), {})
        other = methods.setdefault(method.input_type, method)
        if other is not method:
            raise InvalidSpec(
                f"{where} and {other.service}.{other.name}: both take {method.input_type} from event log {source.event_log!r}; "
                "each type of event goes to one method of a consumer group"
            )
    return [Subscription(persistence_id, group, methods) for (persistence_id, group), methods in found.items()]


def eventing_of(model: ServiceModel, method: MethodInfo) -> eventing_pb2.Eventing:
    """The eventing option of a method; empty when it has none. Read from the serialized options, whatever they were written with."""
    declared = model.pool.FindServiceByName(method.service).methods_by_name[method.name].GetOptions().SerializeToString()
    return descriptor_pb2.MethodOptions.FromString(declared).Extensions[eventing_pb2.eventing]  # type: ignore[index]
