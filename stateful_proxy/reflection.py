"""Server reflection over the function's own descriptors, so that generic gRPC tools can call a service without its .proto files."""

from __future__ import annotations

from google.protobuf.descriptor import FileDescriptor

from cloudstate_core.pb.grpc.reflection.v1alpha import reflection_pb2 as pb
from stateful_proxy.service import ServiceModel

NAME = "grpc.reflection.v1alpha.ServerReflection"
PATHS = (f"/{NAME}/ServerReflectionInfo", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
"""Both versions have the same messages."""

_NOT_FOUND = 5


def answer(model: ServiceModel, data: bytes) -> bytes:
    """The encoded answer to one encoded request. An unknown symbol is an empty list, as Cloudstate's clients expect."""
    request = pb.ServerReflectionRequest.FromString(data)
    response = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
    kind = request.WhichOneof("message_request")
    if kind == "list_services":
        names = [NAME, *model.services]
        response.list_services_response.service.extend(pb.ServiceResponse(name=name) for name in names)
    elif kind == "file_by_filename":
        response.file_descriptor_response.file_descriptor_proto.extend(_files(_by_name(model, request.file_by_filename)))
    elif kind == "file_containing_symbol":
        response.file_descriptor_response.file_descriptor_proto.extend(_files(_by_symbol(model, request.file_containing_symbol)))
    elif kind == "all_extension_numbers_of_type":
        response.all_extension_numbers_response.base_type_name = request.all_extension_numbers_of_type
    else:
        response.error_response.error_code = _NOT_FOUND
        response.error_response.error_message = "extensions are not listed"
    return response.SerializeToString()


def _by_name(model: ServiceModel, name: str) -> FileDescriptor | None:
    try:
        return model.pool.FindFileByName(name)
    except KeyError:
        return None


def _by_symbol(model: ServiceModel, symbol: str) -> FileDescriptor | None:
    try:
        return model.pool.FindFileContainingSymbol(symbol)
    except KeyError:
        return None


def _files(file: FileDescriptor | None) -> list[bytes]:
    """A file and everything it imports, each once, itself first."""
    found: dict[str, bytes] = {}
    waiting = [file] if file is not None else []
    while waiting:
        next_file = waiting.pop(0)
        if next_file.name not in found:
            found[next_file.name] = next_file.serialized_pb
            waiting += next_file.dependencies
    return list(found.values())
