"""Generates Python code for an entity's interface: `python -m cloudstate_sdk.protoc counter.proto`.

protoc writes imports of `cloudstate.entity_key_pb2`, a name that belongs to no package here: the options live in `cloudstate_sdk.pb`. This command
knows the options of Cloudstate, protobuf's well-known types and `google/api/annotations.proto` by itself and points the imports there. It needs
grpcio-tools (`cloudstate-sdk[protoc]`).
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
import tempfile

from google.api import annotations_pb2, http_pb2, httpbody_pb2
from google.protobuf import any_pb2, descriptor_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2

from cloudstate_sdk.pb.cloudstate import entity_key_pb2, eventing_pb2, legacy_entity_key_pb2

WELL_KNOWN = (descriptor_pb2, any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2)
GOOGLE = (*WELL_KNOWN, http_pb2, annotations_pb2, httpbody_pb2)
KNOWN = (*GOOGLE, entity_key_pb2, legacy_entity_key_pb2, eventing_pb2)
OURS = re.compile(r"^from cloudstate import (?=(?:(?:legacy_)?entity_key|eventing)_pb2\b)", re.MULTILINE)


def generate(files: list[str], folder: pathlib.Path, output: pathlib.Path) -> int:
    """Compile .proto files of `folder` into `output`; protoc's exit code."""
    try:
        from grpc_tools import protoc
    except ImportError:
        print("error: grpcio-tools is not installed; it comes with `pip install cloudstate-sdk[protoc]`", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        known = pathlib.Path(temporary, "known.binpb")
        known.write_bytes(descriptor_pb2.FileDescriptorSet(file=[_proto(module.DESCRIPTOR) for module in KNOWN]).SerializeToString())
        options = [f"-I{folder}", f"--descriptor_set_in={known}", f"--python_out={output}", f"--pyi_out={output}"]
        code: int = protoc.main(["protoc", *options, *files])
    for name in files if code == 0 else ():
        for suffix in ("_pb2.py", "_pb2.pyi"):
            path = output / (name.removesuffix(".proto") + suffix)
            path.write_text(OURS.sub("from cloudstate_sdk.pb.cloudstate import ", path.read_text()))
    return code


def _proto(descriptor: object) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    descriptor.CopyToProto(file)  # type: ignore[attr-defined]
    return file


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m cloudstate_sdk.protoc", description="Generate Python code for an entity's interface.")
    parser.add_argument("files", nargs="+", metavar="FILE", help=".proto files, relative to the source folder")
    parser.add_argument("-I", "--source", type=pathlib.Path, default=pathlib.Path("."), help="source folder (default: here)")
    parser.add_argument("-o", "--output", type=pathlib.Path, default=pathlib.Path("."), help="where the code goes (default: here)")
    options = parser.parse_args()
    return generate(options.files, options.source, options.output)


if __name__ == "__main__":
    sys.exit(main())
