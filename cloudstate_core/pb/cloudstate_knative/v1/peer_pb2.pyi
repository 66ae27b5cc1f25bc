from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

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

class Replication(_message.Message):
    __slots__ = ("changes",)
    class Change(_message.Message):
        __slots__ = ("persistence_id", "entity_id", "version", "record", "deleted")
        PERSISTENCE_ID_FIELD_NUMBER: _ClassVar[int]
        ENTITY_ID_FIELD_NUMBER: _ClassVar[int]
        VERSION_FIELD_NUMBER: _ClassVar[int]
        RECORD_FIELD_NUMBER: _ClassVar[int]
        DELETED_FIELD_NUMBER: _ClassVar[int]
        persistence_id: str
        entity_id: str
        version: int
        record: bytes
        deleted: bool
        def __init__(self, persistence_id: _Optional[str] = ..., entity_id: _Optional[str] = ..., version: _Optional[int] = ..., record: _Optional[bytes] = ..., deleted: _Optional[bool] = ...) -> None: ...
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[Replication.Change]
    def __init__(self, changes: _Optional[_Iterable[_Union[Replication.Change, _Mapping]]] = ...) -> None: ...

class ReplicationReceipt(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
