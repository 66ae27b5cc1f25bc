"""What a method says about events, by its option `cloudstate.eventing` (pure).

The option is read by its number from the function's own descriptors: 1081, or 50003 as release 0.5.1 of Cloudstate wrote it.
"""

from __future__ import annotations

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import MethodDescriptor

from cloudstate_core.pb.cloudstate import eventing_pb2
from cloudstate_core.pb.cloudstate_knative.compat import eventing01_pb2


def eventing_of(method: MethodDescriptor) -> eventing_pb2.Eventing:
    """The option of a method; empty when it has none. Read from the serialized options, whatever they were written with."""
    options = descriptor_pb2.MethodOptions.FromString(method.GetOptions().SerializeToString())
    if options.HasExtension(eventing_pb2.eventing):  # type: ignore[arg-type]
        return options.Extensions[eventing_pb2.eventing]  # type: ignore[index]
    found = eventing_pb2.Eventing()
    if options.HasExtension(eventing01_pb2.eventing01):  # type: ignore[arg-type]
        old: eventing01_pb2.Eventing01 = options.Extensions[eventing01_pb2.eventing01]  # type: ignore[index]
        source = getattr(old, "in")
        if source:
            getattr(found, "in").topic = source
        if old.out:
            found.out.topic = old.out
    return found
