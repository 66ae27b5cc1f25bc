"""A leader's placement against proxies that follow its map, in simulated time: everything is owned again, within the budgets."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from autoscaler.placement.budget import PlacementSettings
from autoscaler.placement.quota import quotas
from autoscaler.placement.service import ServicePlacement
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.shard_map import Entry

STEP = 0.2
SHARDS = 64


class Proxy:
    """A proxy as far as the leader can see it: it follows the map one step late."""

    def __init__(self, name: str, revision: str = "r1") -> None:
        self.name, self.revision = name, revision
        self.owned: set[int] = set()
        self.generation = 0
        self.told_at: dict[tuple[int, int], float] = {}
        self.silent = self.stuck = False
        self.draining = False
        self.journal_ok = True


class World:
    """Time, one placement, its proxies, and the load that each shard really has."""

    def __init__(self, shards: int = SHARDS, options: PlacementSettings | None = None, load: list[float] | None = None) -> None:
        self.now = 100.0
        self.placement = ServicePlacement("ns/cart", shards, options)
        self.proxies: dict[str, Proxy] = {}
        self.load = load or [0.01] * shards
        self.most_busy = 0
        self.started: list[tuple[float, int]] = []

    def join(self, name: str, revision: str = "r1") -> Proxy:
        member = pb.Member(member_id=name, pod=name.partition("#")[0], revision=revision)
        hello = pb.Hello(service="ns/cart", member=member, journal_id="j1", shard_count=self.placement.shard_count)
        assert self.placement.hello(self.now, hello) == ""
        self.proxies[name] = Proxy(name, revision)
        return self.proxies[name]

    def kill(self, name: str) -> None:
        """The process ends and its driver says so."""
        del self.proxies[name]
        self.placement.gone(name)

    def step(self) -> None:
        for proxy in self.proxies.values():
            if not proxy.silent:
                self._follow(proxy)
                self._beat(proxy)
        before = self.placement.map
        self.placement.tick(self.now)
        self._note(before)
        self.now += STEP

    def _follow(self, proxy: Proxy) -> None:
        """Claim what is given, give up what is asked for, lose what is taken."""
        shard_map = self.placement.map
        for shard, entry in enumerate(shard_map.entries):
            if (entry.owner == proxy.name and not entry.next) or (entry.next == proxy.name and self._forced(proxy, shard, entry)):
                proxy.owned.add(shard)
            elif not (proxy.stuck and entry.owner == proxy.name) and entry.next != proxy.name:
                proxy.owned.discard(shard)
        proxy.generation = shard_map.generation

    def _forced(self, proxy: Proxy, shard: int, entry: Entry) -> bool:
        """A taker claims without a seal once the giver has had its time."""
        return self.now - proxy.told_at.setdefault((shard, entry.since), self.now) >= entry.force_after_ms / 1000

    def _beat(self, proxy: Proxy) -> None:
        if proxy.name not in self.placement.states:
            self.join(proxy.name, proxy.revision)
            self.proxies[proxy.name] = proxy
        owned = [pb.OwnedShard(shard=s, epoch=1, load=self.load[s]) for s in proxy.owned]
        beat = pb.Heartbeat(owned=owned, journal_ok=proxy.journal_ok, generation=proxy.generation, draining=proxy.draining)
        self.placement.heartbeat(self.now, proxy.name, beat)

    def _note(self, before: object) -> None:
        entries = self.placement.map.entries
        busy = Counter(name for e in entries if e.moving for name in (e.owner, e.next) if not self._leaves(e.owner))
        self.most_busy = max([self.most_busy, *busy.values()])
        if before is not self.placement.map:
            count = sum(e.moving and e.since == self.placement.map.generation for e in entries)
            self.started.append((self.now, count))

    def _leaves(self, name: str) -> bool:
        return name in self.proxies and (self.proxies[name].draining or not self.proxies[name].journal_ok)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            self.step()

    def until(self, condition: object, limit: float = 300.0) -> float:
        """Steps until `condition()`; the simulated seconds that took."""
        begun = self.now
        while not condition():  # type: ignore[operator]
            assert self.now - begun < limit, self.describe()
            self.step()
        return self.now - begun

    def settled(self) -> bool:
        """Everybody holds exactly what the map says, and nothing moves."""
        entries = self.placement.map.entries
        if any(e.moving for e in entries):
            return False
        return all(p.owned == {s for s, e in enumerate(entries) if e.owner == p.name} for p in self.proxies.values() if not p.silent)

    def counts(self) -> Counter[str]:
        return Counter(e.owner for e in self.placement.map.entries)

    def describe(self) -> str:
        return f"{self.counts()}, moving {sum(e.moving for e in self.placement.map.entries)}, members {list(self.placement.states)}"

    def peak(self) -> float:
        """Load of the hottest member over the mean."""
        held: Counter[str] = Counter()
        for shard, entry in enumerate(self.placement.map.entries):
            held[entry.owner] += self.load[shard]  # type: ignore[assignment]
        return max(held.values()) * len(self.proxies) / sum(self.load)


def running(*names: str, **options: object) -> World:
    world = World(**options)  # type: ignore[arg-type]
    for name in names:
        world.join(name)
    world.until(lambda: world.settled() and set(world.counts()) == set(names))
    return world


def test_the_first_pod_gets_every_shard_with_one_write() -> None:
    world = World()
    world.join("a")
    world.step()
    assert world.counts() == {"a": SHARDS}
    assert world.placement.map.generation == 1


def test_a_member_that_has_not_beaten_yet_gets_nothing() -> None:
    placement = ServicePlacement("ns/cart", 4)
    placement.hello(0.0, pb.Hello(member=pb.Member(member_id="a", pod="a"), journal_id="j", shard_count=4))
    assert not placement.tick(0.1)
    assert placement.ready_members() == []


@pytest.mark.parametrize(
    ("hello", "says"),
    [
        ({"shard_count": 8, "journal_id": "j1"}, "8 shards: service ns/cart has 64"),
        ({"shard_count": SHARDS, "journal_id": "other"}, "journal other: service ns/cart keeps its entities in journal j1"),
        ({"shard_count": SHARDS, "journal_id": ""}, "must name"),
    ],
)
def test_a_member_of_another_journal_is_refused(hello: dict[str, object], says: str) -> None:
    world = running("a")
    assert says in world.placement.hello(world.now, pb.Hello(member=pb.Member(member_id="b", pod="b"), **hello))
    assert list(world.placement.states) == ["a"]


def test_a_pod_of_an_older_revision_that_joins_last_does_not_take_the_new_methods_away() -> None:
    """After a change of leader the pods of two revisions join in any order; activators refuse a method that they are not told of."""
    placement = ServicePlacement("ns/cart", SHARDS)

    def join(revision: str, *paths: str) -> None:
        member, methods = pb.Member(member_id=revision, pod=revision, revision=revision), [pb.Method(path=path) for path in paths]
        assert placement.hello(0.0, pb.Hello(service="ns/cart", member=member, journal_id="j1", shard_count=SHARDS, methods=methods)) == ""

    join("cart-2", "/shop.Cart/Get", "/shop.Cart/Share")
    join("cart-1", "/shop.Cart/Get")
    assert [method.path for method in placement.methods] == ["/shop.Cart/Get", "/shop.Cart/Share"]


def test_a_new_pod_is_filled_quickly_and_within_the_concurrent_moves() -> None:
    world = running("a", "b", "c", "d")
    world.most_busy = 0
    world.join("e")
    took = world.until(lambda: world.settled() and world.counts()["e"] >= SHARDS // 5 - 1)
    assert took <= 10.0
    assert world.most_busy <= PlacementSettings().max_concurrent_moves
    assert world.placement.moves_total <= SHARDS / 5 * 1.1


def test_a_proved_death_moves_only_the_shards_of_the_dead_and_at_once() -> None:
    world = running("a", "b", "c")
    before = world.placement.map.entries
    world.kill("b")
    world.step()
    after = world.placement.map.entries
    assert "b" not in world.counts()
    assert not any(entry.moving for entry in after)
    assert [s for s in range(SHARDS) if before[s].owner != after[s].owner] == [s for s in range(SHARDS) if before[s].owner == "b"]


def test_silence_is_death_after_three_seconds() -> None:
    world = running("a", "b", "c")
    world.proxies["b"].silent = True
    world.run(2.8)
    assert world.counts()["b"] > 0
    world.run(0.8)
    assert world.counts()["b"] == 0


def test_a_drained_pod_gives_everything_away_and_the_last_one_frees_it() -> None:
    world = running("a", "b")
    world.placement.drain("a")
    world.proxies["a"].draining = True
    assert world.until(lambda: world.placement.drained("a")) <= 5.0
    assert world.counts() == {"b": SHARDS}
    world.placement.drain("b")
    world.until(lambda: world.placement.drained("b"))
    assert all(entry.free for entry in world.placement.map.entries)


def test_a_request_during_the_last_drain_waits_for_the_seal_instead_of_fencing() -> None:
    world = running("a")
    world.placement.drain("a")
    world.placement.tick(world.now)
    assert all(entry.free for entry in world.placement.map.entries)
    world.join("b")
    world.placement.heartbeat(world.now, "b", pb.Heartbeat(journal_ok=True, generation=world.placement.map.generation))
    world.placement.tick(world.now)
    assert {(e.owner, e.next) for e in world.placement.map.entries} == {("a", "b")}
    world.until(world.settled)
    assert world.counts() == {"b": SHARDS}


def test_a_giver_that_hangs_is_overruled_once_the_taker_holds_the_shard() -> None:
    world = running("a", "b")
    world.proxies["a"].stuck = True
    world.placement.drain("a")
    world.run(4.0)
    assert any(e.moving for e in world.placement.map.entries)
    assert world.until(world.settled) < 10.0
    assert world.counts() == {"b": SHARDS}


def test_a_taker_that_dies_gives_the_shard_back() -> None:
    world = running("a", "b")
    world.proxies["a"].stuck = True
    world.placement.drain("a")
    world.run(1.0)
    world.kill("b")
    world.placement.tick(world.now)
    assert not any(e.moving for e in world.placement.map.entries)


def test_one_member_without_the_journal_is_relieved_but_an_outage_moves_nothing() -> None:
    world = running("a", "b", "c")
    world.proxies["a"].journal_ok = False
    world.until(lambda: world.counts()["a"] == 0)
    quiet = running("a", "b", "c")
    for proxy in quiet.proxies.values():
        proxy.journal_ok = False
    before = quiet.placement.map
    quiet.run(30)
    assert quiet.placement.map is before


def test_measured_load_is_balanced_in_rounds_of_a_tenth_and_after_a_rest() -> None:
    world = running("a", "b")
    hot = [s for s, e in enumerate(world.placement.map.entries) if e.owner == "a"]
    for shard in hot:
        world.load[shard] = 0.05
    world.started.clear()
    world.until(lambda: world.settled() and world.peak() <= 1.11)
    for at, _ in world.started:
        assert sum(count for when, count in world.started if 0 <= when - at < 9.9) <= SHARDS // 10
    moves = world.placement.moves_total
    world.run(120)
    assert world.placement.moves_total == moves


def test_a_canary_gets_its_share_of_entities_and_rollback_returns_the_same_ones() -> None:
    world = running("old-1", "old-2")
    world.join("new-1", "r2")
    sides: list[set[int]] = []
    for percent in (0, 10, 50, 100, 50, 10, 0):
        world.placement.set_traffic({"r1": 100 - percent, "r2": percent})
        wanted = quotas({"r1": 100 - percent, "r2": percent}, SHARDS)["r2"]
        world.until(lambda wanted=wanted: world.settled() and world.counts()["new-1"] == wanted)
        sides.append({s for s, e in enumerate(world.placement.map.entries) if e.owner == "new-1"})
    assert sides[0] < sides[1] < sides[2] < sides[3] == set(range(SHARDS))
    assert sides[4:] == [sides[2], sides[1], sides[0]]


def test_a_revision_without_a_ready_pod_leaves_its_shards_where_they_are_served() -> None:
    world = running("old")
    world.placement.set_traffic({"r1": 0, "r2": 100})
    before = world.placement.map
    world.run(20)
    assert world.placement.map is before


def test_a_new_leader_waits_for_the_members_of_the_map_it_found() -> None:
    old = running("a", "b", "c")
    world = World()
    world.placement = ServicePlacement("ns/cart", SHARDS, kept=old.placement.map)
    world.now = 5000.0
    world.join("a")
    world.join("b")
    world.run(2.0)
    assert world.placement.map is old.placement.map
    world.run(2.0)
    assert set(world.counts()) == {"a", "b"}
    assert world.placement.map.generation > old.placement.map.generation
    kept = old.placement.map.entries
    assert all(world.placement.map.entries[s].owner == kept[s].owner for s in range(SHARDS) if kept[s].owner != "c")


def test_a_map_with_another_number_of_shards_is_refused() -> None:
    with pytest.raises(ValueError, match="the map of ns/cart has 64"):
        ServicePlacement("ns/cart", 8, kept=running("a").placement.map)


def test_a_handoff_is_measured() -> None:
    world = running("a")
    world.join("b")
    world.until(lambda: world.settled() and world.counts()["b"] > 0)
    assert world.placement.handoffs
    assert max(world.placement.handoffs) <= 3 * STEP


@pytest.mark.parametrize("seed", range(4))
def test_balance_holds_under_chaos(seed: int) -> None:
    """Pods come, drain and die, load is skewed and drifts: once left alone, everything is owned and near the mean."""
    rnd = random.Random(seed)
    world = World(256, PlacementSettings(min_dwell=5.0), [0.2 / (rank + 3) ** 0.8 for rank in range(256)])
    rnd.shuffle(world.load)
    for n in range(4):
        world.join(f"p{n}")
    world.run(5)
    for n in range(4, 16):
        event = rnd.choice(["join", "join", "kill", "drain", "silent"])
        alive = sorted(world.proxies)
        if event == "join" or len(alive) < 3:
            world.join(f"p{n}")
        elif event == "kill":
            world.kill(rnd.choice(alive))
        elif event == "drain":
            world.proxies[rnd.choice(alive)].draining = True
        else:
            world.proxies[rnd.choice(alive)].silent = True
        world.load = [value * rnd.uniform(0.9, 1.1) for value in world.load]
        world.run(rnd.uniform(0.4, 12))
        for name in [n for n, p in world.proxies.items() if p.draining and world.placement.drained(n)]:
            world.kill(name)
    for proxy in list(world.proxies.values()):
        if proxy.silent or proxy.draining:
            world.kill(proxy.name)
    world.until(lambda: world.settled() and world.peak() <= 1.12)
    assert set(world.counts()) == set(world.proxies)


class PlacementMachine(RuleBasedStateMachine):
    """Any history of joins, deaths, drains, silences and traffic ends with every shard owned once the world is left alone."""

    @initialize()
    def begin(self) -> None:
        self.world = World(32)
        self.number = 0
        self.generation = 0

    @rule(revision=st.sampled_from(["r1", "r2"]))
    def join(self, revision: str) -> None:
        if len(self.world.proxies) < 6:
            self.number += 1
            self.world.join(f"p{self.number}", revision)

    @rule(data=st.data(), what=st.sampled_from(["kill", "drain", "silent", "speak", "stuck", "journal", "restart"]))
    def disturb(self, data: st.DataObject, what: str) -> None:
        if not self.world.proxies:
            return
        proxy = self.world.proxies[data.draw(st.sampled_from(sorted(self.world.proxies)))]
        if what == "kill":
            self.world.kill(proxy.name)
        elif what == "drain":
            proxy.draining = True
        elif what == "journal":
            proxy.journal_ok = not proxy.journal_ok
        elif what == "restart":
            self.number += 1
            del self.world.proxies[proxy.name]
            self.world.join(f"{proxy.name.partition('#')[0]}#{self.number}", proxy.revision)
        else:
            proxy.silent, proxy.stuck = what == "silent", what == "stuck"

    @rule(percent=st.integers(0, 100))
    def traffic(self, percent: int) -> None:
        self.world.placement.set_traffic({"r1": 100 - percent, "r2": percent})

    @rule(steps=st.integers(1, 40))
    def pass_time(self, steps: int) -> None:
        for _ in range(steps):
            self.world.step()

    @invariant()
    def the_map_is_well_formed(self) -> None:
        entries = self.world.placement.map.entries
        assert self.world.placement.map.generation >= self.generation
        self.generation = self.world.placement.map.generation
        assert all(e.owner and e.owner != e.next for e in entries if e.next)
        assert self.world.most_busy <= PlacementSettings().max_concurrent_moves + PlacementSettings().max_drain_moves

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        for proxy in list(world.proxies.values()):
            proxy.stuck, proxy.journal_ok = False, True
            if proxy.silent or proxy.draining:
                world.kill(proxy.name)
        world.join("last")
        world.until(lambda: world.settled() and all(e.owner in world.proxies for e in world.placement.map.entries), limit=200)


PlacementMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPlacementMachine = PlacementMachine.TestCase
