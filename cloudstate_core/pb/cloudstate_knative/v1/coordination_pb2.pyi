from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Method(_message.Message):
    __slots__ = ("path", "persistence_id", "key_fields", "stateless")
    PATH_FIELD_NUMBER: _ClassVar[int]
    PERSISTENCE_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELDS_FIELD_NUMBER: _ClassVar[int]
    STATELESS_FIELD_NUMBER: _ClassVar[int]
    path: str
    persistence_id: str
    key_fields: _containers.RepeatedCompositeFieldContainer[KeyField]
    stateless: bool
    def __init__(self, path: _Optional[str] = ..., persistence_id: _Optional[str] = ..., key_fields: _Optional[_Iterable[_Union[KeyField, _Mapping]]] = ..., stateless: _Optional[bool] = ...) -> None: ...

class KeyField(_message.Message):
    __slots__ = ("numbers", "type")
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    numbers: _containers.RepeatedScalarFieldContainer[int]
    type: int
    def __init__(self, numbers: _Optional[_Iterable[int]] = ..., type: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("member_id", "pod", "revision", "data_address", "peer_address")
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PEER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    member_id: str
    pod: str
    revision: str
    data_address: str
    peer_address: str
    def __init__(self, member_id: _Optional[str] = ..., pod: _Optional[str] = ..., revision: _Optional[str] = ..., data_address: _Optional[str] = ..., peer_address: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("service", "member", "journal_id", "shard_count", "methods")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_COUNT_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    service: str
    member: Member
    journal_id: str
    shard_count: int
    methods: _containers.RepeatedCompositeFieldContainer[Method]
    def __init__(self, service: _Optional[str] = ..., member: _Optional[_Union[Member, _Mapping]] = ..., journal_id: _Optional[str] = ..., shard_count: _Optional[int] = ..., methods: _Optional[_Iterable[_Union[Method, _Mapping]]] = ...) -> None: ...

class OwnedShard(_message.Message):
    __slots__ = ("shard", "epoch", "load")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    shard: int
    epoch: int
    load: float
    def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., load: _Optional[float] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("sent_at", "owned", "function_concurrency", "journal_ok", "generation", "active_entities", "draining")
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    OWNED_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_OK_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_ENTITIES_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    sent_at: int
    owned: _containers.RepeatedCompositeFieldContainer[OwnedShard]
    function_concurrency: float
    journal_ok: bool
    generation: int
    active_entities: int
    draining: bool
    def __init__(self, sent_at: _Optional[int] = ..., owned: _Optional[_Iterable[_Union[OwnedShard, _Mapping]]] = ..., function_concurrency: _Optional[float] = ..., journal_ok: _Optional[bool] = ..., generation: _Optional[int] = ..., active_entities: _Optional[int] = ..., draining: _Optional[bool] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("hello", "heartbeat")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class ShardEntry(_message.Message):
    __slots__ = ("shard", "owner", "next", "since", "force_after_ms")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    FORCE_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    shard: int
    owner: str
    next: str
    since: int
    force_after_ms: int
    def __init__(self, shard: _Optional[int] = ..., owner: _Optional[str] = ..., next: _Optional[str] = ..., since: _Optional[int] = ..., force_after_ms: _Optional[int] = ...) -> None: ...

class MapUpdate(_message.Message):
    __slots__ = ("service", "shard_count", "generation", "entries", "members", "full")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    SHARD_COUNT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    service: str
    shard_count: int
    generation: int
    entries: _containers.RepeatedCompositeFieldContainer[ShardEntry]
    members: _containers.RepeatedCompositeFieldContainer[Member]
    full: bool
    def __init__(self, service: _Optional[str] = ..., shard_count: _Optional[int] = ..., generation: _Optional[int] = ..., entries: _Optional[_Iterable[_Union[ShardEntry, _Mapping]]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., full: _Optional[bool] = ...) -> None: ...

class Acknowledgement(_message.Message):
    __slots__ = ("sent_at", "generation")
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    sent_at: int
    generation: int
    def __init__(self, sent_at: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("map", "acknowledgement", "refusal")
    MAP_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGEMENT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    map: MapUpdate
    acknowledgement: Acknowledgement
    refusal: Refusal
    def __init__(self, map: _Optional[_Union[MapUpdate, _Mapping]] = ..., acknowledgement: _Optional[_Union[Acknowledgement, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class RevisionStats(_message.Message):
    __slots__ = ("service", "revision", "concurrency", "requests", "waiting")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    service: str
    revision: str
    concurrency: float
    requests: float
    waiting: int
    def __init__(self, service: _Optional[str] = ..., revision: _Optional[str] = ..., concurrency: _Optional[float] = ..., requests: _Optional[float] = ..., waiting: _Optional[int] = ...) -> None: ...

class RouteRequest(_message.Message):
    __slots__ = ("activator_id", "stats")
    ACTIVATOR_ID_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    activator_id: str
    stats: _containers.RepeatedCompositeFieldContainer[RevisionStats]
    def __init__(self, activator_id: _Optional[str] = ..., stats: _Optional[_Iterable[_Union[RevisionStats, _Mapping]]] = ...) -> None: ...

class RevisionRoute(_message.Message):
    __slots__ = ("revision", "container_concurrency", "timeout_seconds", "ready_members")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    READY_MEMBERS_FIELD_NUMBER: _ClassVar[int]
    revision: str
    container_concurrency: int
    timeout_seconds: int
    ready_members: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, revision: _Optional[str] = ..., container_concurrency: _Optional[int] = ..., timeout_seconds: _Optional[int] = ..., ready_members: _Optional[_Iterable[str]] = ...) -> None: ...

class ServiceRoute(_message.Message):
    __slots__ = ("map", "methods", "revisions", "hosts", "default_revision", "plain")
    MAP_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_REVISION_FIELD_NUMBER: _ClassVar[int]
    PLAIN_FIELD_NUMBER: _ClassVar[int]
    map: MapUpdate
    methods: _containers.RepeatedCompositeFieldContainer[Method]
    revisions: _containers.RepeatedCompositeFieldContainer[RevisionRoute]
    hosts: _containers.RepeatedScalarFieldContainer[str]
    default_revision: str
    plain: bool
    def __init__(self, map: _Optional[_Union[MapUpdate, _Mapping]] = ..., methods: _Optional[_Iterable[_Union[Method, _Mapping]]] = ..., revisions: _Optional[_Iterable[_Union[RevisionRoute, _Mapping]]] = ..., hosts: _Optional[_Iterable[str]] = ..., default_revision: _Optional[str] = ..., plain: _Optional[bool] = ...) -> None: ...

class RouteResponse(_message.Message):
    __slots__ = ("services",)
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    services: _containers.RepeatedCompositeFieldContainer[ServiceRoute]
    def __init__(self, services: _Optional[_Iterable[_Union[ServiceRoute, _Mapping]]] = ...) -> None: ...
