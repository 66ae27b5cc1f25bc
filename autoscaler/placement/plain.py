"""The members of a service without a proxy: its ready pods. No shards, nothing to place; the leader's driver tells who is ready.

It stands where a `ServicePlacement` stands, so that routes are described and pushed in one way.
"""

from __future__ import annotations

import msgspec

from autoscaler.placement.members import MemberState
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.shard_map import ShardMap, free_map


class PlainMembers:
    """Pods of one service, each by its name, with the address that takes its calls."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.methods: tuple[pb.Method, ...] = ()
        self.states: dict[str, MemberState] = {}
        self.map: ShardMap = free_map(service, "", 0, 1)
        self.members: dict[str, pb.Member] = {}

    def rename(self, service: str) -> None:
        """The service is told by another name from now on."""
        self.service = service
        self.map = msgspec.structs.replace(self.map, service=service, generation=self.map.generation + 1)

    def set_members(self, revision: str, addresses: dict[str, str]) -> None:
        """The ready pods of a revision, name to host:port; pods of other revisions stay."""
        others = {name: member for name, member in self.members.items() if member.revision != revision}
        own = {
            name: pb.Member(member_id=name, pod=name, revision=revision, data_address=address) for name, address in addresses.items()
        }
        self._become(dict(sorted((others | own).items())))

    def _become(self, members: dict[str, pb.Member]) -> None:
        """These are the members now; a new generation of the map has whoever watches it told."""
        if members != self.members:
            self.members = members
            self.map = msgspec.structs.replace(self.map, generation=self.map.generation + 1)

    def ready_members(self, revision: str | None = None) -> list[str]:
        """Pods that take calls, of one revision or of all."""
        return [name for name, member in self.members.items() if revision is None or member.revision == revision]

    def hello(self, now: float, hello: pb.Hello) -> str:
        """A proxy where there should be none."""
        return f"service {self.service}: is not paired with a proxy; its pods cannot join"

    def heartbeat(self, now: float, member: str, beat: pb.Heartbeat) -> None:
        """Nobody beats."""

    def gone(self, member: str) -> None:
        """A pod has ended, or is about to."""
        self._become({name: m for name, m in self.members.items() if name != member})

    def set_traffic(self, percentages: dict[str, float]) -> None:
        """The ingress shares traffic out between revisions; there is nothing to do here."""

    @property
    def quiet(self) -> bool:
        """Time alone changes nothing."""
        return True

    def tick(self, now: float) -> bool:
        """Nothing is decided here."""
        return False
