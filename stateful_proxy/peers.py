"""The other proxies of the service: where they take calls, and the notice that a shard is sealed."""

from __future__ import annotations

from collections.abc import Iterable

from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2, peer_pb2
from cloudstate_core.transport.api import Transport

SEALED = "/cloudstate_knative.v1.PeerService/Sealed"
NOTICE_LIMIT = 2.0
"""Seconds that a notice may take; after that the successor finds out by itself."""


class Peers:
    """Members by id, with one upstream for each that was ever needed."""

    def __init__(self, transport: Transport, member: str) -> None:
        self._transport, self._member = transport, member
        self._addresses: dict[str, str] = {}
        self._upstreams: dict[str, int] = {}

    @property
    def others(self) -> frozenset[str]:
        """Members that are up, without this one."""
        return frozenset(self._addresses)

    def update(self, members: Iterable[coordination_pb2.Member]) -> None:
        """These, and no others, are the members now."""
        self._addresses = {m.member_id: m.peer_address for m in members if m.member_id != self._member}
        living = set(self._addresses.values())
        for address in [address for address in self._upstreams if address not in living]:
            self._transport.disconnect(self._upstreams.pop(address))

    def upstream_of(self, member: str) -> int | None:
        """Where to pass on calls for a member; None when it is not known."""
        address = self._addresses.get(member)
        if address is None:
            return None
        upstream = self._upstreams.get(address)
        if upstream is None:
            upstream = self._upstreams[address] = self._transport.connect(address)
        return upstream

    def announce(self, member: str, shard: int, since: int, epoch: int) -> None:
        """Tell the successor of a shard that it is sealed; a lost notice costs time only."""
        upstream = self.upstream_of(member)
        if upstream is None:
            return
        notice = peer_pb2.SealedNotice(owner=self._member, shard=shard, since=since, epoch=epoch)
        stream = self._transport.open(upstream, SEALED, timeout=NOTICE_LIMIT)
        self._transport.send(stream, notice.SerializeToString())
        self._transport.half_close(stream)
