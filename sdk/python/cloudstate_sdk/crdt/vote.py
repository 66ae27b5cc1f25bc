"""A vote: every pod says yes or no, and sees how many say yes."""

from __future__ import annotations

from cloudstate_sdk.crdt.base import Crdt, Held, Scope
from cloudstate_sdk.pb.cloudstate.crdt_pb2 import CrdtDelta, VoteDelta


class HeldVote(Held):
    """This pod's vote and the count. A new vote has one voter, until the proxy tells how many there are."""

    __slots__ = ("mine", "total_voters", "votes_for")

    def __init__(self) -> None:
        self.field = "vote"
        self.mine, self.votes_for, self.total_voters = False, 0, 1

    def apply(self, delta: CrdtDelta) -> None:
        told = delta.vote
        self.mine, self.votes_for, self.total_voters = told.self_vote, told.votes_for, told.total_voters


class Vote(Crdt, field="vote"):
    """One vote for each pod that is up."""

    _held: HeldVote

    def __init__(self, scope: Scope | None = None, held: Held | None = None) -> None:
        super().__init__(scope, held)
        self._vote: bool | None = None
        """None: nobody has voted here."""

    @classmethod
    def _empty(cls) -> HeldVote:
        return HeldVote()

    @property
    def self_vote(self) -> bool:
        """What this pod says."""
        return self._held.mine if self._vote is None else self._vote

    @property
    def votes_for(self) -> int:
        """How many pods say yes."""
        return self._held.votes_for + self.self_vote - self._held.mine

    @property
    def total_voters(self) -> int:
        """How many pods there are."""
        return self._held.total_voters

    def vote(self, value: bool) -> None:
        """Say yes or no, for this pod."""
        self._scope.check()
        self._vote = value

    def __repr__(self) -> str:
        return f"Vote({self.self_vote}, {self.votes_for} of {self.total_voters})"

    def _changed(self) -> bool:
        return self.self_vote != self._held.mine

    def _delta(self) -> CrdtDelta:
        return CrdtDelta(vote=VoteDelta(self_vote=self.self_vote))

    def _commit(self) -> None:
        self._held.votes_for, self._held.mine = self.votes_for, self.self_vote
        self._vote = None

    def _forget(self) -> None:
        self._vote = None
