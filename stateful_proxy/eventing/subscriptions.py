"""Which methods of a function consume which events, of entities or of topics, as their options declare (pure).

Subscriptions with the same source and consumer group are one consumer: each event goes to one of their methods, chosen by its type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cloudstate_core.pb.cloudstate import eventing_pb2
from stateful_proxy.eventing.declared import eventing_of
from stateful_proxy.service import ANY, InvalidSpec, MethodInfo, ServiceModel

_NOT_PROTOBUF = ("p.", "json.")
"""Type URLs of these hosts name no message type."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One consumer of the events of one source."""

    source: str
    """Persistence id of the entity type whose events these are, or a topic."""
    group: str
    methods: Mapping[str, MethodInfo]
    """By their input types."""

    @property
    def consumer(self) -> str:
        """Its name; that of its cursors in the journal."""
        return f"{self.group}/{self.source}"

    def method_for(self, type_url: str) -> MethodInfo | None:
        """The method that takes events of a type: the one with that input, else the one that takes anything; None: there is none."""
        anything = self.methods.get(ANY)
        if type_url.startswith(_NOT_PROTOBUF):
            return anything
        return self.methods.get(type_url.rpartition("/")[2], anything)

    def unfit(self, type_url: str) -> str:
        """What to tell when no method takes events of a type."""
        takes = ", ".join(sorted(self.methods))
        return f"no method of consumer group {self.group} takes {type_url or 'events without a type'}; they take {takes}"


def event_log_subscriptions(model: ServiceModel) -> Sequence[Subscription]:
    """The consumers of entities' events that a function declares. InvalidSpec when it is not clear which method an event goes to."""
    return _subscriptions(model, "event_log", "event log", "the persistence id of an event sourced entity")


def topic_subscriptions(model: ServiceModel) -> Sequence[Subscription]:
    """The consumers of topics that a function declares. InvalidSpec when it is not clear which method an event goes to, or one feeds itself."""
    found = _subscriptions(model, "topic", "topic", "the name of a topic")
    for subscription in found:
        for method in subscription.methods.values():
            if method.out == subscription.source:
                raise InvalidSpec(
                    f"{method.service}.{method.name}: takes its messages from topic {method.out!r} and publishes to it: it would feed itself"
                )
    return found


def check_eventing(model: ServiceModel, sink: bool) -> None:
    """Whether what a function declares can be served; `sink`: there is where to publish. InvalidSpec when it cannot."""
    event_log_subscriptions(model)
    topic_subscriptions(model)
    publishing = next((method for method in model.methods.values() if method.out), None)
    if publishing is not None and not sink:
        raise InvalidSpec(
            f"{publishing.service}.{publishing.name}: publishes to topic {publishing.out!r}, and no sink is set: "
            "set the annotation cloudstate.io/sink (CLOUDSTATE_SINK), or bind the service to a sink (K_SINK)"
        )


def _subscriptions(model: ServiceModel, kind: str, noun: str, rule: str) -> Sequence[Subscription]:
    found: dict[tuple[str, str], dict[str, MethodInfo]] = {}
    for method, source in _sources(model):
        if source.WhichOneof("source") != kind:
            continue
        where, name = f"{method.service}.{method.name}", getattr(source, kind)
        if not name:
            raise InvalidSpec(f"{where}: eventing.in.{kind} is empty: it must be {rule}")
        methods = found.setdefault((name, source.consumer_group or method.service), {})
        other = methods.setdefault(method.input_type, method)
        if other is not method:
            raise InvalidSpec(
                f"{where} and {other.service}.{other.name}: both take {method.input_type} from {noun} {name!r}; "
                "each type of event goes to one method of a consumer group"
            )
    return [Subscription(source, group, methods) for (source, group), methods in found.items()]


def _sources(model: ServiceModel) -> Iterator[tuple[MethodInfo, eventing_pb2.EventSource]]:
    for method in model.methods.values():
        declared = eventing_of(model.pool.FindServiceByName(method.service).methods_by_name[method.name])
        yield method, getattr(declared, "in")
