from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CrdtRecord(_message.Message):
    __slots__ = ("incarnation", "compaction", "replicas", "context_dots", "folded", "store")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    COMPACTION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_DOTS_FIELD_NUMBER: _ClassVar[int]
    FOLDED_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    compaction: int
    replicas: _containers.RepeatedScalarFieldContainer[str]
    context_dots: _containers.RepeatedScalarFieldContainer[int]
    folded: _containers.RepeatedScalarFieldContainer[int]
    store: CrdtStore
    def __init__(self, incarnation: _Optional[int] = ..., compaction: _Optional[int] = ..., replicas: _Optional[_Iterable[str]] = ..., context_dots: _Optional[_Iterable[int]] = ..., folded: _Optional[_Iterable[int]] = ..., store: _Optional[_Union[CrdtStore, _Mapping]] = ...) -> None: ...

class CrdtStore(_message.Message):
    __slots__ = ("gcounter", "pncounter", "gset", "orset", "lwwregister", "flag", "ormap", "vote")
    GCOUNTER_FIELD_NUMBER: _ClassVar[int]
    PNCOUNTER_FIELD_NUMBER: _ClassVar[int]
    GSET_FIELD_NUMBER: _ClassVar[int]
    ORSET_FIELD_NUMBER: _ClassVar[int]
    LWWREGISTER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    ORMAP_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    gcounter: CrdtCounter
    pncounter: CrdtCounter
    gset: CrdtElements
    orset: CrdtElements
    lwwregister: CrdtRegister
    flag: CrdtDots
    ormap: CrdtMap
    vote: CrdtDots
    def __init__(self, gcounter: _Optional[_Union[CrdtCounter, _Mapping]] = ..., pncounter: _Optional[_Union[CrdtCounter, _Mapping]] = ..., gset: _Optional[_Union[CrdtElements, _Mapping]] = ..., orset: _Optional[_Union[CrdtElements, _Mapping]] = ..., lwwregister: _Optional[_Union[CrdtRegister, _Mapping]] = ..., flag: _Optional[_Union[CrdtDots, _Mapping]] = ..., ormap: _Optional[_Union[CrdtMap, _Mapping]] = ..., vote: _Optional[_Union[CrdtDots, _Mapping]] = ...) -> None: ...

class CrdtDots(_message.Message):
    __slots__ = ("dots",)
    DOTS_FIELD_NUMBER: _ClassVar[int]
    dots: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dots: _Optional[_Iterable[int]] = ...) -> None: ...

class CrdtCounter(_message.Message):
    __slots__ = ("slots",)
    class Slot(_message.Message):
        __slots__ = ("replica", "number", "magnitude", "negative")
        REPLICA_FIELD_NUMBER: _ClassVar[int]
        NUMBER_FIELD_NUMBER: _ClassVar[int]
        MAGNITUDE_FIELD_NUMBER: _ClassVar[int]
        NEGATIVE_FIELD_NUMBER: _ClassVar[int]
        replica: int
        number: int
        magnitude: int
        negative: bool
        def __init__(self, replica: _Optional[int] = ..., number: _Optional[int] = ..., magnitude: _Optional[int] = ..., negative: _Optional[bool] = ...) -> None: ...
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    slots: _containers.RepeatedCompositeFieldContainer[CrdtCounter.Slot]
    def __init__(self, slots: _Optional[_Iterable[_Union[CrdtCounter.Slot, _Mapping]]] = ...) -> None: ...

class CrdtElements(_message.Message):
    __slots__ = ("type_urls", "types", "values", "counts", "dots")
    TYPE_URLS_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    DOTS_FIELD_NUMBER: _ClassVar[int]
    type_urls: _containers.RepeatedScalarFieldContainer[str]
    types: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[bytes]
    counts: _containers.RepeatedScalarFieldContainer[int]
    dots: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, type_urls: _Optional[_Iterable[str]] = ..., types: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[bytes]] = ..., counts: _Optional[_Iterable[int]] = ..., dots: _Optional[_Iterable[int]] = ...) -> None: ...

class CrdtRegister(_message.Message):
    __slots__ = ("writes",)
    class Write(_message.Message):
        __slots__ = ("replica", "number", "clock", "writer", "type_url", "value")
        REPLICA_FIELD_NUMBER: _ClassVar[int]
        NUMBER_FIELD_NUMBER: _ClassVar[int]
        CLOCK_FIELD_NUMBER: _ClassVar[int]
        WRITER_FIELD_NUMBER: _ClassVar[int]
        TYPE_URL_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        replica: int
        number: int
        clock: int
        writer: str
        type_url: str
        value: bytes
        def __init__(self, replica: _Optional[int] = ..., number: _Optional[int] = ..., clock: _Optional[int] = ..., writer: _Optional[str] = ..., type_url: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    WRITES_FIELD_NUMBER: _ClassVar[int]
    writes: _containers.RepeatedCompositeFieldContainer[CrdtRegister.Write]
    def __init__(self, writes: _Optional[_Iterable[_Union[CrdtRegister.Write, _Mapping]]] = ...) -> None: ...

class CrdtMap(_message.Message):
    __slots__ = ("entries",)
    class Entry(_message.Message):
        __slots__ = ("type_url", "key", "dots", "value")
        TYPE_URL_FIELD_NUMBER: _ClassVar[int]
        KEY_FIELD_NUMBER: _ClassVar[int]
        DOTS_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        type_url: str
        key: bytes
        dots: _containers.RepeatedScalarFieldContainer[int]
        value: CrdtStore
        def __init__(self, type_url: _Optional[str] = ..., key: _Optional[bytes] = ..., dots: _Optional[_Iterable[int]] = ..., value: _Optional[_Union[CrdtStore, _Mapping]] = ...) -> None: ...
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[CrdtMap.Entry]
    def __init__(self, entries: _Optional[_Iterable[_Union[CrdtMap.Entry, _Mapping]]] = ...) -> None: ...
