"""Conformance: verifying discovery protocol."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2

from tests.tck import models
from tests.tck.client import Client, Page
from tests.tck.scripted import ScriptedFunction

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_verify_proxy_info_and_entity_discovery(function: ScriptedFunction) -> None:
    [info] = function.asked
    assert (info.protocol_major_version, info.protocol_minor_version) == (0, 2)
    assert sorted(info.supported_entity_types) == sorted(models.TYPES), "exactly these, each once"
    assert info.proxy_name
    assert info.proxy_version
    files = descriptor_pb2.FileDescriptorSet.FromString(function.spec.proto).file
    defined = {f"{file.package}.{service.name}" for file in files for service in file.service}
    assert {service for _, service, _ in models.COMPONENTS} <= defined


async def test_anything_but_a_route_is_an_empty_404(client: Client) -> None:
    """The suite takes an answer to `GET /` for the sign that a proxy is up."""
    assert await client.post("/", verb="GET", content_type="") == Page(404, "", "")
