"""Conformance: verifying proxy test: gRPC server reflection."""

from __future__ import annotations

import pytest

from cloudstate_core.pb.grpc.reflection.v1alpha import reflection_pb2 as pb
from tests.tck import models
from tests.tck.client import Client

pytestmark = pytest.mark.asyncio(loop_scope="session")


def names(question: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
    """The answer that lists every service, itself first."""
    services = ["grpc.reflection.v1alpha.ServerReflection", *sorted(service for _, service, _ in models.COMPONENTS)]
    listed = pb.ListServiceResponse(service=[pb.ServiceResponse(name=name) for name in services])
    return pb.ServerReflectionResponse(valid_host=question.host, original_request=question, list_services_response=listed)


async def test_verify_that_the_proxy_supports_server_reflection(client: Client) -> None:
    one, two = pb.ServerReflectionRequest(host="a", list_services=""), pb.ServerReflectionRequest(host="b", list_services="nonsense.blabla.Void")
    unknown = pb.ServerReflectionRequest(host="c", file_containing_symbol="nonsense.blabla.Void")
    nothing = pb.ServerReflectionResponse(valid_host="c", original_request=unknown, file_descriptor_response=pb.FileDescriptorResponse())
    assert await client.reflect(one, two, unknown) == [names(one), names(two), nothing]
