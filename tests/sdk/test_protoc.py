"""The command that generates code for an interface knows all that interfaces import which are not the user's own."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
from cloudstate_sdk.protoc import generate

INTERFACE = """
syntax = "proto3";
package example;
import "cloudstate/entity_key.proto";
import "cloudstate/eventing.proto";
import "google/api/annotations.proto";
import "google/protobuf/any.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/empty.proto";
import "google/protobuf/field_mask.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";

message Meeting {
  string room = 1 [(.cloudstate.entity_key) = true];
  google.protobuf.Timestamp begins = 2;
  google.protobuf.Duration lasts = 3;
  google.protobuf.Struct notes = 4;
  google.protobuf.StringValue title = 5;
  google.protobuf.FieldMask shown = 6;
  google.protobuf.Any more = 7;
}

service Meetings { rpc Plan(Meeting) returns (google.protobuf.Empty) { option (google.api.http).post = "/meetings/{room}"; } }
"""


def test_an_interface_may_use_the_well_known_types(tmp_path: pathlib.Path) -> None:
    (tmp_path / "meetings.proto").write_text(INTERFACE)
    assert generate(["meetings.proto"], tmp_path, tmp_path) == 0
    use = "import meetings_pb2; meetings_pb2.Meeting().begins.GetCurrentTime()"
    subprocess.run([sys.executable, "-c", use], cwd=tmp_path, check=True, timeout=60)


def test_a_mistake_in_an_interface_is_told(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.proto").write_text('syntax = "proto3"; message Wrong { Missing field = 1; }')
    assert generate(["wrong.proto"], tmp_path, tmp_path) == 1
    assert '"Missing" is not defined' in capfd.readouterr().err
