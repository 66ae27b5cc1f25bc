"""A service's members as the scaling loop sees them: by pod instead of by proxy process."""

from __future__ import annotations

from autoscaler.placement.plain import PlainMembers
from autoscaler.placement.service import ServicePlacement


class ShardsByPod:
    """Of a service whose pods own shards."""

    def __init__(self, placement: ServicePlacement) -> None:
        self._placement = placement

    def _member(self, pod: str) -> str | None:
        return next((m for m, member in self._placement.members.items() if member.pod == pod), None)

    def load_of_pod(self, pod: str) -> float:
        """Load of the shards the pod owns."""
        member = self._member(pod)
        return 0.0 if member is None else self._placement.load_of(member)

    def shards_of_pod(self, pod: str) -> int:
        """Shards the pod owns or is about to receive."""
        member = self._member(pod)
        return 0 if member is None else sum(member in (e.owner, e.next) for e in self._placement.map.entries)

    def is_member(self, pod: str) -> bool:
        """True once the pod takes commands."""
        member = self._member(pod)
        return member is not None and member in self._placement.ready_members()

    def function_concurrency_of_pod(self, pod: str) -> float:
        """Commands at the pod's user function, on average since its last heartbeat; 0 before the first."""
        member = self._member(pod)
        return 0.0 if member is None else self._placement.states[member].function_concurrency

    def drain_pod(self, pod: str) -> None:
        """Move the pod's shards away, or free them when no other pod is left."""
        if (member := self._member(pod)) is not None:
            self._placement.drain(member)


class PlainByPod:
    """Of a service without a proxy: a pod that leaves only has to be sent nothing more."""

    def __init__(self, members: PlainMembers) -> None:
        self._members = members
        self.draining: set[str] = set()

    def load_of_pod(self, pod: str) -> float:
        """Nothing is known of it."""
        return 0.0

    def shards_of_pod(self, pod: str) -> int:
        """None."""
        return 0

    def is_member(self, pod: str) -> bool:
        """True once the pod takes calls."""
        return pod in self._members.members

    def function_concurrency_of_pod(self, pod: str) -> float:
        """Nothing is known of it."""
        return 0.0

    def drain_pod(self, pod: str) -> None:
        """Send the pod nothing more."""
        self.draining.add(pod)
        self._members.gone(pod)
