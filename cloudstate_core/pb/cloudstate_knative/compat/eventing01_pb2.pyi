from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor
EVENTING01_FIELD_NUMBER: _ClassVar[int]
eventing01: _descriptor.FieldDescriptor

class Eventing01(_message.Message):
    __slots__ = ("out",)
    IN_FIELD_NUMBER: _ClassVar[int]
    OUT_FIELD_NUMBER: _ClassVar[int]
    out: str
    def __init__(self, out: _Optional[str] = ..., **kwargs) -> None: ...
