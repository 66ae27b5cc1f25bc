"""The conformance models as a function announces them: descriptors, components, persistence ids and passivation."""

from __future__ import annotations

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor

from cloudstate_core.pb.cloudstate import entity_pb2
from tests.tck.pb.cloudstate.tck.model import action_pb2, crdt_pb2, eventlogeventing_pb2, eventsourced_pb2, valueentity_pb2

EVENT_SOURCED, VALUE_ENTITY = "cloudstate.eventsourced.EventSourced", "cloudstate.valueentity.ValueEntity"
CRDT, ACTION = "cloudstate.crdt.Crdt", "cloudstate.action.ActionProtocol"
TYPES = {ACTION, VALUE_ENTITY, EVENT_SOURCED, CRDT}
PASSIVATION = 100
"""Milliseconds after which an entity of the `…Configured` models leaves memory."""
FILES = [module.DESCRIPTOR for module in (action_pb2, crdt_pb2, eventlogeventing_pb2, eventsourced_pb2, valueentity_pb2)]
COMPONENTS = [
    (ACTION, "cloudstate.tck.model.action.ActionTckModel", ""),
    (ACTION, "cloudstate.tck.model.action.ActionTwo", ""),
    (VALUE_ENTITY, "cloudstate.tck.model.valueentity.ValueEntityTckModel", "value-entity-tck-model"),
    (VALUE_ENTITY, "cloudstate.tck.model.valueentity.ValueEntityTwo", "value-entity-tck-model-two"),
    (VALUE_ENTITY, "cloudstate.tck.model.valueentity.ValueEntityConfigured", "value-entity-configured"),
    (EVENT_SOURCED, "cloudstate.tck.model.EventSourcedTckModel", "event-sourced-tck-model"),
    (EVENT_SOURCED, "cloudstate.tck.model.EventSourcedTwo", "event-sourced-tck-model-two"),
    (EVENT_SOURCED, "cloudstate.tck.model.EventSourcedConfigured", "event-sourced-configured"),
    (CRDT, "cloudstate.tck.model.crdt.CrdtTckModel", "crdt-tck-model"),
    (CRDT, "cloudstate.tck.model.crdt.CrdtTwo", "crdt-tck-model-two"),
    (CRDT, "cloudstate.tck.model.crdt.CrdtConfigured", "crdt-configured"),
    (ACTION, "cloudstate.tck.model.eventlogeventing.EventLogSubscriberModel", ""),
    (EVENT_SOURCED, "cloudstate.tck.model.eventlogeventing.EventSourcedEntityOne", "eventlogeventing-one"),
    (EVENT_SOURCED, "cloudstate.tck.model.eventlogeventing.EventSourcedEntityTwo", "eventlogeventing-two"),
]
"""Type, service, and the name under which its state is stored."""


def descriptors(roots: list[FileDescriptor]) -> bytes:
    """These files and all they import, each once, imports first."""
    found: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        for imported in file.dependencies:
            add(imported)
        found[file.name] = file

    for root in roots:
        add(root)
    files = [descriptor_pb2.FileDescriptorProto.FromString(file.serialized_pb) for file in found.values()]
    return descriptor_pb2.FileDescriptorSet(file=files).SerializeToString()


def spec() -> entity_pb2.EntitySpec:
    """What a function that implements every model answers to discovery."""
    made = entity_pb2.EntitySpec(proto=descriptors(FILES))
    for kind, service, persistence_id in COMPONENTS:
        entity = made.entities.add(entity_type=kind, service_name=service, persistence_id=persistence_id)
        if service.endswith("Configured"):
            entity.passivation_strategy.timeout.timeout = PASSIVATION
    info = made.service_info
    info.service_name, info.service_version, info.service_runtime = "tck", "1", "python"
    info.support_library_name, info.support_library_version, info.protocol_minor_version = "scripted", "1", 2
    return made
