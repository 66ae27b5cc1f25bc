from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class SealedNotice(_message.Message):
    __slots__ = ("owner", "shard", "since", "epoch")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    owner: str
    shard: int
    since: int
    epoch: int
    def __init__(self, owner: _Optional[str] = ..., shard: _Optional[int] = ..., since: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class SealedAcknowledgement(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
