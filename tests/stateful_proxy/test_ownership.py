"""Claims, handoffs and losses against a real journal, with messages that arrive when the test says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloudstate_core.journal.api import Check, Claim, Current, Done, Fenced, Operation, Outcome, Refused, Seal, Token, Unknown
from cloudstate_core.journal.memory import MemoryJournal
from cloudstate_core.shard_map import Entry, ShardMap, free_map
from stateful_proxy.journal_batch import JournalBatch
from stateful_proxy.ownership import MAX_WAITING, Elsewhere, Ownership, Unavailable, Unowned, Waiting

SHARDS = 2


class Timers:
    """The part of a transport that ownership uses."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def after(self, delay: float, callback: Callable[[], None]) -> int:
        self.timers.append((delay, callback))
        return len(self.timers)

    def fire(self) -> list[float]:
        timers, self.timers = self.timers, []
        for _, callback in timers:
            callback()
        return [delay for delay, _ in timers]


class Link:
    """A proxy's way to the journal: answers may be held back, or replaced."""

    def __init__(self, journal: MemoryJournal) -> None:
        self.journal, self.holding = journal, False
        self.held: list[Callable[[], None]] = []
        self.faults: list[Outcome] = []
        self.operations: list[Operation] = []

    def submit(self, operations: Sequence[Operation], done: Done) -> None:
        self.operations += operations
        if self.faults and isinstance(self.faults[0], Refused):
            outcomes: list[Outcome] = [self.faults.pop(0)] * len(operations)
        else:
            outcomes = []
            self.journal.submit(operations, outcomes.extend)
            if self.faults:
                outcomes = [self.faults.pop(0)] * len(operations)
        if self.holding:
            self.held.append(lambda: done(outcomes))
        else:
            done(outcomes)

    def release(self) -> None:
        self.holding = False
        held, self.held = self.held, []
        for answer in held:
            answer()


class Node:
    """One proxy: ownership, and tenants that finish when told to."""

    def __init__(self, member: str, journal: MemoryJournal) -> None:
        self.member, self.timers, self.link = member, Timers(), Link(journal)
        self.batch = JournalBatch(self.timers, self.link)  # type: ignore[arg-type]
        self.ownership = Ownership(self.timers, self.batch, member, SHARDS, lambda: None)  # type: ignore[arg-type]
        self.ownership.tenants = self
        self.ownership.announce = lambda *notice: self.notices.append(notice)
        self.notices: list[tuple[str, int, int, int]] = []
        self.busy: set[int] = set()
        self.draining: dict[int, Callable[[], None]] = {}
        self.dropped: list[int] = []
        self.woken: list[int] = []

    def drain_shard(self, shard: int, done: Callable[[], None]) -> None:
        if shard in self.busy:
            self.draining[shard] = done
        else:
            done()

    def drop_shard(self, shard: int) -> None:
        self.dropped.append(shard)
        self.finish(shard)

    def finish(self, shard: int) -> None:
        self.busy.discard(shard)
        if (done := self.draining.pop(shard, None)) is not None:
            done()
        self.batch.flush()

    def see(self, shard_map: ShardMap, since: int = -1) -> None:
        self.ownership.apply(shard_map.generation, shard_map.since(since))
        self.batch.flush()

    def admit(self, shard: int = 0) -> Any:
        admission = self.ownership.admit(shard)
        self.batch.flush()
        return admission

    def wait(self, call: int, shard: int = 0) -> bool:
        return self.ownership.when_ready(shard, call, lambda: self.woken.append(call))


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal("test/service", SHARDS)


@pytest.fixture
def start() -> ShardMap:
    return free_map("test/service", "j", SHARDS)


def test_a_standalone_proxy_claims_on_demand(journal: MemoryJournal) -> None:
    node = Node("", journal)
    assert isinstance(node.admit(), Waiting)
    assert isinstance(node.admit(), Token)
    assert node.ownership.claims == 1


def test_a_standalone_proxy_takes_over_what_a_leader_placed_before(journal: MemoryJournal) -> None:
    journal.submit([Claim(0, -1, 99, "old", b"n")], lambda outcomes: None)
    node = Node("", journal)
    node.admit()
    assert isinstance(node.admit(), Token)


def test_a_shard_of_the_map_is_claimed_in_the_background_in_one_batch(journal: MemoryJournal, start: ShardMap) -> None:
    node = Node("a", journal)
    assert isinstance(node.admit(), Unowned)
    node.see(start.changed({0: Entry("a"), 1: Entry("a")}))
    assert isinstance(node.admit(0), Token)
    assert isinstance(node.admit(1), Token)
    assert [type(operation) for operation in node.link.operations] == [Claim, Claim]


def test_a_call_for_anothers_shard_is_sent_there(journal: MemoryJournal, start: ShardMap) -> None:
    node = Node("a", journal)
    node.see(start.changed({0: Entry("b")}))
    assert node.admit() == Elsewhere("b")


def test_a_handoff_needs_no_leader_once_it_has_begun(journal: MemoryJournal, start: ShardMap) -> None:
    a, b = Node("a", journal), Node("b", journal)
    owned = start.changed({0: Entry("a")})
    a.see(owned)
    b.see(owned)
    a.busy.add(0)
    moving = owned.changed({0: Entry("a", "b", 0, 5_000)})
    a.see(moving)
    b.see(moving)
    assert a.admit() == Elsewhere("b")
    assert isinstance(b.admit(), Waiting)
    assert b.wait(7)
    assert 0 in a.ownership.owned
    a.finish(0)
    assert 0 not in a.ownership.owned
    [(member, shard, since, epoch)] = a.notices
    assert member == "b"
    b.ownership.sealed_by("a", shard, since, epoch)
    b.batch.flush()
    assert isinstance(b.admit(), Token)
    assert b.woken == [7]


def test_a_seal_notice_may_come_before_its_map_change(journal: MemoryJournal, start: ShardMap) -> None:
    a, b = Node("a", journal), Node("b", journal)
    owned = start.changed({0: Entry("a")})
    moving = owned.changed({0: Entry("a", "b", 0, 5_000)})
    a.see(owned)
    a.see(moving)
    b.ownership.sealed_by(a.member, *a.notices[0][1:])
    b.batch.flush()
    assert isinstance(b.admit(), Unowned)
    b.see(moving)
    assert isinstance(b.admit(), Token)


def test_a_false_seal_notice_takes_nothing(journal: MemoryJournal, start: ShardMap) -> None:
    a, b = Node("a", journal), Node("b", journal)
    owned = start.changed({0: Entry("a")})
    a.see(owned)
    token = a.admit()
    b.see(moving := owned.changed({0: Entry("a", "b", 0, 5_000)}))
    b.ownership.sealed_by("a", 0, moving.entries[0].since, token.epoch + 1)
    b.batch.flush()
    assert isinstance(b.admit(), Waiting)
    assert _current(journal, token)
    b.timers.fire()
    assert isinstance(b.admit(), Token)


def test_a_seal_notice_counts_only_from_the_owner_and_for_the_move_at_hand(journal: MemoryJournal, start: ShardMap) -> None:
    a, b = Node("a", journal), Node("b", journal)
    owned = start.changed({0: Entry("a")})
    a.see(owned)
    token = a.admit()
    b.see(moving := owned.changed({0: Entry("a", "b", 0, 5_000)}))
    for owner, since in [("c", moving.entries[0].since), ("a", moving.entries[0].since - 1)]:
        b.ownership.sealed_by(owner, 0, since, token.epoch)
        b.batch.flush()
    b.ownership.sealed_by("a", SHARDS, 1, 1)
    assert not b.link.operations
    assert _current(journal, token)


def test_a_notice_that_proves_false_does_not_cost_the_forced_claim(journal: MemoryJournal, start: ShardMap) -> None:
    a, b = Node("a", journal), Node("b", journal)
    owned = start.changed({0: Entry("a")})
    a.see(owned)
    b.see(moving := owned.changed({0: Entry("a", "b", 0, 5_000)}))
    b.link.holding = True
    b.ownership.sealed_by("a", 0, moving.entries[0].since, 77)
    b.batch.flush()
    b.timers.fire()
    b.link.release()
    assert 0 not in b.ownership.owned
    b.timers.fire()
    assert 0 in b.ownership.owned


def test_a_shard_lost_while_it_drains_is_not_sealed(journal: MemoryJournal, start: ShardMap) -> None:
    a, b = Node("a", journal), Node("b", journal)
    owned = start.changed({0: Entry("a")})
    a.see(owned)
    a.busy.add(0)
    moving = owned.changed({0: Entry("a", "b", 0, 5_000)})
    a.see(moving)
    b.see(moving.changed({0: Entry("b")}))
    a.ownership.lost(0, a.ownership.owned[0], b.admit().epoch)
    a.batch.flush()
    assert a.ownership.settled
    assert [type(operation) for operation in a.link.operations] == [Claim]
    assert (a.ownership.losses, a.ownership.handoffs) == (1, 0)


def test_a_claim_found_stale_is_made_again_if_the_map_has_changed_meanwhile(journal: MemoryJournal, start: ShardMap) -> None:
    journal.submit([Claim(0, -1, 50, "b", b"n")], lambda outcomes: None)
    a = Node("a", journal)
    a.link.holding = True
    a.see(start.changed({0: Entry("a")}))
    a.ownership.apply(60, [(0, Entry("a", "", 60))])
    a.link.release()
    a.batch.flush()
    assert 0 in a.ownership.owned


def test_the_successor_forces_a_silent_owner_only_after_the_time_of_the_entry(journal: MemoryJournal, start: ShardMap) -> None:
    a, b = Node("a", journal), Node("b", journal)
    owned = start.changed({0: Entry("a")})
    a.see(owned)
    token = a.admit()
    b.see(owned.changed({0: Entry("a", "b", 0, 5_000)}))
    assert _current(journal, token)
    assert b.timers.fire() == [5.0]
    assert isinstance(b.admit(), Token)
    assert not _current(journal, token)


def test_a_drain_that_takes_too_long_drops_what_has_not_been_answered(journal: MemoryJournal, start: ShardMap) -> None:
    a = Node("a", journal)
    owned = start.changed({0: Entry("a")})
    a.see(owned)
    a.busy.add(0)
    a.see(owned.changed({0: Entry("a", "b", 0, 5_000)}))
    assert a.timers.fire() == [4.0]
    assert a.dropped == [0]
    assert len(a.notices) == 1


def test_a_move_that_is_called_off_ends_with_the_shard_claimed_again(journal: MemoryJournal, start: ShardMap) -> None:
    a = Node("a", journal)
    owned = start.changed({0: Entry("a")})
    a.see(owned)
    a.busy.add(0)
    moving = owned.changed({0: Entry("a", "b", 0, 5_000)})
    a.see(moving)
    a.see(moving.changed({0: Entry("a")}))
    assert isinstance(a.admit(), Waiting)
    a.finish(0)
    assert 0 in a.ownership.owned
    assert isinstance(a.admit(), Token)
    assert not a.notices


def test_a_claim_whose_answer_comes_after_the_shard_was_moved_on_is_given_up(journal: MemoryJournal, start: ShardMap) -> None:
    a = Node("a", journal)
    a.link.holding = True
    owned = start.changed({0: Entry("a")})
    a.see(owned)
    a.see(owned.changed({0: Entry("a", "b", 0, 5_000)}))
    a.link.release()
    a.batch.flush()
    assert 0 not in a.ownership.owned
    assert len(a.notices) == 1


def test_a_stale_claim_is_not_tried_again_until_the_map_changes(journal: MemoryJournal, start: ShardMap) -> None:
    journal.submit([Claim(0, -1, 50, "b", b"n")], lambda outcomes: None)
    a = Node("a", journal)
    owned = start.changed({0: Entry("a")})
    a.see(owned)
    assert isinstance(a.admit(), Unavailable)
    a.timers.fire()
    a.admit()
    assert len(a.link.operations) == 1
    a.ownership.apply(60, [(0, Entry("a", "", 60))])
    a.batch.flush()
    assert isinstance(a.admit(), Token)


@pytest.mark.parametrize("fault", [Refused("disk full"), Unknown("connection lost")])
def test_a_claim_that_the_journal_does_not_take_is_told_and_tried_again(journal: MemoryJournal, start: ShardMap, fault: Outcome) -> None:
    a = Node("a", journal)
    a.link.faults = [fault]
    a.link.holding = True
    a.see(start.changed({0: Entry("a")}))
    assert isinstance(a.admit(), Waiting)
    a.wait(1)
    a.link.release()
    assert a.woken == [1]
    admission = a.admit()
    assert isinstance(admission, Unavailable)
    assert getattr(fault, "reason", "") in admission.reason
    a.timers.fire()
    assert isinstance(a.admit(), Token)


def test_claims_back_off_while_the_journal_is_away(journal: MemoryJournal, start: ShardMap) -> None:
    a = Node("a", journal)
    a.link.faults = [Refused("away")] * 7
    a.see(start.changed({0: Entry("a")}))
    delays = [a.timers.fire()[0] for _ in range(7)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert isinstance(a.admit(), Token)


def test_a_fenced_proxy_forgets_the_shard_and_does_not_take_it_back(journal: MemoryJournal, start: ShardMap) -> None:
    a, b = Node("a", journal), Node("b", journal)
    owned = start.changed({0: Entry("a")})
    a.see(owned)
    b.see(owned.changed({0: Entry("b")}))
    theirs = b.admit()
    a.ownership.lost(0, a.ownership.owned[0], theirs.epoch)
    a.batch.flush()
    assert a.dropped == [0]
    assert isinstance(a.admit(), Unavailable)
    assert _current(journal, theirs)


def test_an_old_fence_does_not_cost_a_newer_token(journal: MemoryJournal, start: ShardMap) -> None:
    a = Node("a", journal)
    a.see(start.changed({0: Entry("a")}))
    token = a.admit()
    a.ownership.lost(0, Token(token.epoch - 1, b"older"), token.epoch)
    assert a.admit() == token


def test_a_shard_whose_claim_the_store_has_lost_is_claimed_again(journal: MemoryJournal, start: ShardMap) -> None:
    a = Node("a", journal)
    a.see(start.changed({0: Entry("a")}))
    token = a.admit()
    journal.shards[0].epoch, journal.shards[0].nonce = token.epoch - 1, b"before"
    a.ownership.lost(0, token, token.epoch - 1)
    a.batch.flush()
    assert a.dropped == [0]
    again = a.admit()
    assert again != token
    assert _current(journal, again)


def test_an_older_map_is_ignored(journal: MemoryJournal, start: ShardMap) -> None:
    a = Node("a", journal)
    first = start.changed({0: Entry("a")})
    a.see(first.changed({1: Entry("a")}))
    a.ownership.apply(first.generation, [(0, Entry("b", "", 1))])
    assert isinstance(a.admit(0), Token)


def test_waiting_calls_are_bounded_and_can_be_withdrawn(journal: MemoryJournal, start: ShardMap) -> None:
    a = Node("a", journal)
    a.see(start.changed({0: Entry("b", "a", 0, 5_000)}))
    assert all(a.wait(call) for call in range(MAX_WAITING))
    assert not a.wait(MAX_WAITING)
    assert a.ownership.withdraw(3)
    assert not a.ownership.withdraw(3)
    assert a.wait(MAX_WAITING)
    a.timers.fire()
    assert len(a.woken) == MAX_WAITING
    assert 3 not in a.woken


def test_a_leaving_proxy_seals_what_nobody_takes_and_claims_nothing(journal: MemoryJournal, start: ShardMap) -> None:
    a = Node("a", journal)
    a.see(start.changed({0: Entry("a")}))
    a.ownership.drain_all()
    a.batch.flush()
    assert a.ownership.settled
    assert isinstance(a.admit(), Unowned)
    assert isinstance(a.link.operations[-1], Seal)


def test_a_call_that_waits_for_the_last_seal_is_let_go(journal: MemoryJournal, start: ShardMap) -> None:
    a = Node("a", journal)
    a.see(start.changed({0: Entry("a")}))
    a.link.holding = True
    a.ownership.drain_all()
    a.batch.flush()
    assert isinstance(a.admit(), Waiting)
    a.wait(1)
    a.link.release()
    assert a.woken == [1]
    assert isinstance(a.admit(), Unowned)


def _current(journal: MemoryJournal, token: Token, shard: int = 0) -> bool:
    outcomes: list[Outcome] = []
    journal.submit([Check(shard, token)], outcomes.extend)
    return isinstance(outcomes[0], Current)


class Handoffs(RuleBasedStateMachine):
    """Two proxies, a leader that changes its mind, and messages, answers and timers in any order."""

    @initialize()
    def begin(self) -> None:
        self.journal = MemoryJournal("test/service", SHARDS)
        self.nodes = {name: Node(name, self.journal) for name in ("a", "b")}
        self.map = free_map("test/service", "j", SHARDS)
        self.calls = 0
        self.waiting: dict[str, set[int]] = {"a": set(), "b": set()}

    @rule(shard=st.integers(0, SHARDS - 1), owner=st.sampled_from(["", "a", "b"]), move=st.booleans())
    def leader(self, shard: int, owner: str, move: bool) -> None:
        successor = {"a": "b", "b": "a"}.get(owner, "") if move else ""
        self.map = self.map.changed({shard: Entry(owner, successor, 0, 5_000 if successor else 0)})

    @rule(name=st.sampled_from(["a", "b"]))
    def push(self, name: str) -> None:
        node = self.nodes[name]
        node.see(self.map, node.ownership.generation)

    @rule(name=st.sampled_from(["a", "b"]), shard=st.integers(0, SHARDS - 1))
    def call(self, name: str, shard: int) -> None:
        node = self.nodes[name]
        if isinstance(node.admit(shard), Waiting):
            self.calls += 1
            node.wait(self.calls, shard)
            self.waiting[name].add(self.calls)

    @rule(name=st.sampled_from(["a", "b"]), shard=st.integers(0, SHARDS - 1))
    def work(self, name: str, shard: int) -> None:
        node = self.nodes[name]
        admission = node.admit(shard)
        if isinstance(admission, Token):
            node.busy.add(shard)

    @rule(name=st.sampled_from(["a", "b"]), shard=st.integers(0, SHARDS - 1))
    def finish(self, name: str, shard: int) -> None:
        self.nodes[name].finish(shard)

    @rule(name=st.sampled_from(["a", "b"]))
    def hold(self, name: str) -> None:
        self.nodes[name].link.holding = True

    @rule(name=st.sampled_from(["a", "b"]))
    def release(self, name: str) -> None:
        node = self.nodes[name]
        node.link.release()
        node.batch.flush()

    @rule(name=st.sampled_from(["a", "b"]), unknown=st.booleans())
    def fault(self, name: str, unknown: bool) -> None:
        self.nodes[name].link.faults.append(Unknown("lost") if unknown else Refused("away"))

    @rule(name=st.sampled_from(["a", "b"]))
    def time(self, name: str) -> None:
        self.nodes[name].timers.fire()

    @rule(name=st.sampled_from(["a", "b"]))
    def notice(self, name: str) -> None:
        node = self.nodes[name]
        for member, shard, since, epoch in node.notices:
            self.nodes[member].ownership.sealed_by(name, shard, since, epoch)
            self.nodes[member].batch.flush()
        node.notices.clear()

    @rule(name=st.sampled_from(["a", "b"]), shard=st.integers(0, SHARDS - 1))
    def probe(self, name: str, shard: int) -> None:
        node = self.nodes[name]
        if (token := node.ownership.owned.get(shard)) is not None:
            outcomes: list[Outcome] = []
            self.journal.submit([Check(shard, token)], outcomes.extend)
            if isinstance(outcomes[0], Fenced):
                node.ownership.lost(shard, token, outcomes[0].epoch)
                node.batch.flush()

    @precondition(lambda self: hasattr(self, "nodes"))
    @invariant()
    def one_token_is_current(self) -> None:
        for shard in range(SHARDS):
            current = [n for n in self.nodes.values() if (t := n.ownership.owned.get(shard)) and _current(self.journal, t, shard)]
            assert len(current) <= 1

    def teardown(self) -> None:
        """Once messages arrive and time passes, the map's word is what is, and no call waits for ever."""
        if not hasattr(self, "nodes"):
            return
        self.map = self.map.changed({s: Entry(e.next or e.owner) for s, e in enumerate(self.map.entries)})
        for _ in range(8):
            for name, node in self.nodes.items():
                node.link.faults.clear()
                self.release(name)
                self.push(name)
                for shard in range(SHARDS):
                    node.finish(shard)
                self.notice(name)
                node.timers.fire()
                for shard in range(SHARDS):
                    self.probe(name, shard)
        for shard, entry in enumerate(self.map.entries):
            assert {n.member for n in self.nodes.values() if shard in n.ownership.owned} == ({entry.owner} - {""})
            if entry.owner:
                assert _current(self.journal, self.nodes[entry.owner].admit(shard), shard)
        for name, calls in self.waiting.items():
            assert calls <= set(self.nodes[name].woken), "a call was never woken"


Handoffs.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestHandoffs = Handoffs.TestCase
