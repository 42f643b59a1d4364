"""Joins and leaves that go out together, cancel out, or wait for their user's rate."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from service.core.model import Channel
from service.core.rate_limits import Rate
from service.hub import announcements
from service.hub.announcements import WINDOW
from tests.world.script import NOT_KEPT, A, ScriptedMember, Seat
from tests.world.scripted import ScriptedWorld

HEARS: dict[str, Any] = {"receives_join_leave": True, "present": True}
SENDS: dict[str, Any] = {"sends_join_leave": True, "present": True}


def join(member: ScriptedMember, channel: Channel = A, **options: Any) -> Seat:
    return member.join(channel, history=NOT_KEPT, **options)


def listener(world: ScriptedWorld, channel: Channel = A) -> tuple[ScriptedMember, Seat]:
    """Return a member that hears of the others, and that they do not hear of."""
    member = world.member()
    seat = join(member, channel, **HEARS)
    member.waiting.clear()
    return member, seat


def busy(world: ScriptedWorld) -> tuple[ScriptedMember, Seat]:
    """Return a listener of a channel in which the next change waits for a window."""
    member, seat = listener(world)
    join(world.member(), **SENDS)
    assert len(seat.heard) == 1
    member.waiting.clear()
    seat.heard.clear()
    return member, seat


def look(world: ScriptedWorld, seat: Seat) -> set[str]:
    return {one.client for one in world.hub.present(seat.channel, seat.subscription)}


# Windows.


def test_the_first_change_of_a_quiet_channel_goes_out_at_once() -> None:
    world = ScriptedWorld()
    _, ears = listener(world)
    member = world.member()
    seat = join(member, **SENDS)
    assert ears.heard == [("join", "client2")]
    world.clock.advance(WINDOW)
    member.leave(seat)
    assert ears.heard == [("join", "client2"), ("leave", "client2")]
    assert world.clock.pending == []


def test_what_follows_goes_out_as_one_message_at_the_end_of_the_window() -> None:
    world = ScriptedWorld()
    member, ears = busy(world)
    for _ in range(3):
        join(world.member(), **SENDS)
        world.clock.advance(WINDOW / 8)
    assert member.waiting == []
    world.clock.advance(WINDOW / 2)
    assert member.waiting == []
    world.clock.advance(WINDOW / 8)
    assert len(member.waiting) == 1
    assert ears.heard == [("join", f"client{n}") for n in (3, 4, 5)]
    assert world.clock.pending == []


def test_a_join_and_its_leave_within_a_window_cancel_out() -> None:
    world = ScriptedWorld()
    member, ears = busy(world)
    other = world.member()
    other.leave(join(other, **SENDS))
    stays = world.member()
    join(stays, **SENDS)
    world.clock.advance(1.0)
    assert ears.heard == [("join", stays.name)]
    assert len(member.waiting) == 1
    assert world.hub.announcements.outcomes["cancelled"] == 2


@pytest.mark.requirement("L20", "L7")
@pytest.mark.parametrize("level", [2, 3])
def test_while_pushes_are_shed_all_wait_and_are_told_what_has_changed(
    level: int,
) -> None:
    world = ScriptedWorld()
    member, ears = listener(world)
    goes, comes, passes = world.member(), world.member(), world.member()
    was_there = join(goes, **SENDS)
    world.clock.advance(WINDOW)
    member.waiting.clear()
    ears.heard.clear()
    world.shedding.observe(0.0, {"memory": level})
    goes.leave(was_there)
    join(comes, **SENDS)
    for _ in range(100):
        passes.leave(join(passes, **SENDS))
        world.clock.advance(WINDOW)
    assert member.waiting == []
    assert len(world.clock.pending) == 1  # one timer, whatever waits
    world.shedding.observe(10.0, {"memory": 0})
    world.clock.advance(WINDOW)
    assert ears.heard == [("leave", goes.name), ("join", comes.name)]
    assert len(member.waiting) == 1
    assert world.hub.announcements.outcomes["cancelled"] == 200
    assert world.clock.pending == []


def test_while_pushes_are_shed_the_last_listener_may_leave() -> None:
    world = ScriptedWorld()
    member, ears = listener(world)
    world.shedding.observe(0.0, {"memory": 2})
    join(world.member(), **SENDS)
    assert len(world.clock.pending) == 1
    member.leave(ears)
    assert world.clock.pending == []


def test_a_leave_and_a_join_within_a_window_are_told_in_this_order() -> None:
    world = ScriptedWorld()
    _, ears = listener(world)
    member = world.member()
    seat = join(member, **SENDS)
    for _ in range(50):
        member.leave(seat)
        seat = join(member, **SENDS)
    world.clock.advance(1.0)
    kinds = [kind for kind, _ in ears.heard]
    assert kinds == ["join", "leave", "join"]


def test_the_one_who_returns_is_told_to_join_before_the_lost_one_leaves() -> None:
    world = ScriptedWorld()
    _, ears = listener(world)
    lost = world.member("ann")
    seat = join(lost, **SENDS)
    world.clock.advance(WINDOW)
    seat.ended = True
    assert world.hub.begin_grace(seat.subscription)
    world.clock.advance(1.0)
    back = world.member("ann")
    join(back, **SENDS)
    assert ears.heard[1:] == [("join", back.name), ("leave", lost.name)]


def test_a_crowd_is_told_of_in_messages_of_64_and_none_is_forgotten() -> None:
    world = ScriptedWorld()
    member, ears = busy(world)
    names = []
    for _ in range(150):
        one = world.member()
        names.append(("join", one.name))
        join(one, **SENDS)
    counts = []
    for _ in range(3):
        world.clock.advance(WINDOW)
        counts.append(len(ears.heard))
    assert counts == [64, 128, 150]
    assert len(member.waiting) == 3
    assert ears.heard == names


# Listeners that come, look and go between a change and the end of its window.


def test_a_newcomer_is_told_only_of_what_happens_after_its_join() -> None:
    world = ScriptedWorld()
    _, old = listener(world)
    first = world.member()
    seat = join(first, **SENDS)  # told at once
    before = world.member()
    join(before, **SENDS)
    first.leave(seat)
    _, new = listener(world)
    assert before.name in look(world, new)
    after = world.member()
    join(after, **SENDS)
    world.clock.advance(1.0)
    assert old.heard[1:] == [
        ("join", before.name),
        ("leave", first.name),
        ("join", after.name),
    ]
    assert new.heard == [("join", after.name)]


def test_who_looked_in_between_is_told_of_both_at_once() -> None:
    world = ScriptedWorld()
    _, looks = busy(world)
    _, does_not = listener(world)
    passing = world.member()
    seat = join(passing, **SENDS)
    assert passing.name in look(world, looks)
    _, newcomer = listener(world)
    assert passing.name in look(world, newcomer)
    passing.leave(seat)
    assert looks.heard == [("join", passing.name), ("leave", passing.name)]
    assert newcomer.heard == [("leave", passing.name)]  # it came after the join
    world.clock.advance(1.0)
    assert does_not.heard == []
    assert len(looks.heard) == 2


def test_who_looked_after_a_return_is_told_of_one_leave() -> None:
    world = ScriptedWorld()
    _, looks = listener(world)
    member = world.member()
    seat = join(member, **SENDS)
    member.leave(seat)
    _, between = listener(world)
    seat = join(member, **SENDS)
    look(world, looks)
    look(world, between)
    member.leave(seat)
    world.clock.advance(1.0)
    both = [("join", member.name), ("leave", member.name)]
    assert looks.heard == both
    assert between.heard == both


def test_who_looked_before_the_join_or_after_the_leave_is_told_of_neither() -> None:
    world = ScriptedWorld()
    _, early = busy(world)
    _, late = listener(world)
    join(world.member(), **SENDS)  # so that something waits
    look(world, early)
    passing = world.member()
    seat = join(passing, **SENDS)
    passing.leave(seat)
    look(world, late)
    world.clock.advance(1.0)
    assert passing.name not in {name for _, name in early.heard + late.heard}


def test_a_looker_that_left_is_told_of_nothing() -> None:
    world = ScriptedWorld()
    member, ears = busy(world)
    _, other = listener(world)
    passing = world.member()
    seat = join(passing, **SENDS)
    look(world, ears)
    member.leave(ears)
    passing.leave(seat)
    assert (ears.heard, other.heard) == ([], [])


def test_nothing_waits_where_nobody_listens() -> None:
    world = ScriptedWorld()
    member, ears = busy(world)
    seats = [(one, join(one, **SENDS)) for one in (world.member(), world.member())]
    assert len(world.clock.pending) == 1
    member.leave(ears)
    assert world.clock.pending == []
    for one, seat in seats:
        one.leave(seat)
        join(one, **SENDS)
    assert world.clock.pending == []
    _, new = listener(world)
    world.clock.advance(1.0)
    assert new.heard == []


def test_stopped_nothing_goes_out_any_more() -> None:
    world = ScriptedWorld()
    member, _ = busy(world)
    join(world.member(), **SENDS)
    world.hub.announcements.stop()
    world.clock.advance(1.0)
    assert (member.waiting, world.clock.pending) == ([], [])


# Rates.


SLOW = Rate(200.0, 1000.0)  # in place of RATE


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcements, "RATE", SLOW)


def audience(world: ScriptedWorld, count: int) -> list[Seat]:
    return [listener(world)[1] for _ in range(count)]


@pytest.mark.usefixtures("slow")
def test_a_join_beyond_the_rate_goes_out_when_it_is_paid_if_its_client_stays() -> None:
    world = ScriptedWorld()
    seats = audience(world, 50)
    heard = seats[0].heard
    members = [world.member("ann") for _ in range(13)]  # each join is 100 messages
    joined = [join(member, **SENDS) for member in members]
    other = world.member("bob")
    join(other, **SENDS)
    stranger = [world.member() for _ in range(11)]  # each has a rate of its own
    for one in stranger:
        join(one, **SENDS)
    world.clock.advance(WINDOW)
    told = [name for _, name in heard]
    assert told == [one.name for one in (*members[:10], other, *stranger)]
    outcomes = world.hub.announcements.outcomes
    assert outcomes["delayed"] == 3
    # Presence shows all, and one that was shown and leaves is told of to its looker.
    assert {one.name for one in members} <= look(world, seats[1])
    late = members[10]
    late.leave(joined[10])
    both = [("join", late.name), ("leave", late.name)]
    assert seats[1].heard[-2:] == both
    # A leave never waits for the rate.
    heard.clear()
    members[0].leave(joined[0])
    world.clock.advance(2 * WINDOW)
    assert heard == [("leave", members[0].name)]
    # Those that stay are told of when the rate has paid for them, each after 0.5 s.
    heard.clear()
    world.clock.advance(1.5)
    assert heard == [("join", one.name) for one in members[-2:]]
    assert outcomes["delayed"] == 3
    assert world.clock.pending == []


@pytest.mark.usefixtures("slow")
def test_one_user_that_comes_and_goes_causes_no_more_than_its_rate() -> None:
    # As in the attack: 800 joins and leaves a second, from three connections.
    world = ScriptedWorld()
    size, seconds = 30, 10
    seats = audience(world, size)
    attackers = [world.member("eve") for _ in range(3)]
    inside: list[Seat | None] = [None] * 3
    rng = Random(7)
    for step in range(seconds * 800):
        number = rng.randrange(3)
        seat = inside[number]
        if seat is None:
            inside[number] = join(attackers[number], **SENDS)
        else:
            attackers[number].leave(seat)
            inside[number] = None
        world.clock.advance(1 / 800)
        if step == seconds * 400:
            # Somebody else is told of meanwhile, by the next window.
            other = world.member("bob")
            join(other, **SENDS)
            world.clock.advance(WINDOW)
            assert ("join", other.name) in seats[0].heard
    for seat in seats:
        told = [name for _, name in seat.heard if name != other.name]
        assert len(told) * size <= SLOW.burst + (seconds + 1) * SLOW.rate
        member = seat.subscription.member
        assert isinstance(member, ScriptedMember)
        assert len(member.waiting) <= (seconds + 1) / WINDOW
    outcomes = world.hub.announcements.outcomes
    assert outcomes["cancelled"] + outcomes["announced"] >= seconds * 800 - 6
    assert outcomes["delayed"] > 0


@pytest.mark.usefixtures("slow")
def test_a_join_into_a_channel_beyond_the_burst_takes_the_whole_burst() -> None:
    world = ScriptedWorld()
    seats = audience(world, 600)  # two messages each are more than the burst of 1,000
    heard = seats[0].heard
    for _ in range(2):
        join(world.member("ann"), **SENDS)
    assert len(heard) == 1
    world.clock.advance(SLOW.burst / SLOW.rate - WINDOW)
    assert len(heard) == 1
    world.clock.advance(3 * WINDOW)
    assert len(heard) == 2


def test_the_process_writes_so_many_frames_a_second_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(announcements, "FRAMES", 500.0)
    world = ScriptedWorld()
    channels = [Channel(f"c{n}") for n in range(10)]
    members = [listener(world, channel)[0] for channel in channels for _ in range(20)]
    for second in range(1, 5):
        for _ in range(10):  # 2,000 frames a second, if each join were one
            for channel in channels:
                join(world.member(), channel, **SENDS)
            world.clock.advance(0.1)
        # And a portion of 200 at once.
        assert sum(len(member.waiting) for member in members) <= 500 * second + 201
    world.clock.advance(10.0)
    assert world.clock.pending == []
    for member in members:
        [[seat]] = member.seats.values()
        assert len(seat.heard) == 40  # all were told of in the end


def test_many_listeners_are_written_to_in_portions() -> None:
    world = ScriptedWorld()
    seats = audience(world, 1000)
    members = [seat.subscription.member for seat in seats]

    def written() -> int:
        return sum(len(member.waiting) for member in members)  # type: ignore[attr-defined]

    join(world.member(), **SENDS)
    at_once = written()
    assert 190 <= at_once <= 201
    portions = []
    while written() < 1000:
        before = written()
        world.clock.advance(world.clock.pending[0] - world.clock.now())
        portions.append(written() - before)
    assert max(portions) <= 101  # each 20 ms: 5,000 a second
    # Meanwhile others wait, and go out then.
    assert world.clock.pending == []


def test_changes_while_others_are_written_to_cancel_out_or_follow() -> None:
    world = ScriptedWorld()
    seats = audience(world, 1000)
    first, second, third = (world.member() for _ in range(3))
    seat = join(first, **SENDS)
    first.leave(seat)
    second.leave(join(second, **SENDS))
    join(third, **SENDS)
    seats[-1].subscription.member.leave(seats[-1])  # type: ignore[attr-defined]
    world.clock.advance(1.0)
    whole = [("join", first.name), ("leave", first.name), ("join", third.name)]
    for one in seats[:-1]:
        assert one.heard == whole
    assert seats[-1].heard == []  # it left before its turn
    assert world.clock.pending == []


# Everything at random.


class Walk:
    """Members that come, go and look at random; the listeners' views of the channel."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(seed)
        self.world = ScriptedWorld()
        self.ears = [self.world.member() for _ in range(4)]
        self.others = [self.world.member(rng.choice(["a", "b"])) for _ in range(6)]
        self.seats: dict[str, Seat] = {}
        self.views: dict[str, set[str]] = {}
        self.seen: dict[str, set[str]] = {}
        self.last: dict[str, dict[str, str]] = {}

    def hear(self, name: str) -> None:
        """Apply what a listener was told to its view."""
        last, view, seen = self.last[name], self.views[name], self.seen[name]
        heard = self.seats[name].heard
        for kind, client in heard:
            assert last.get(client) != kind, f"two of {kind} in a row"
            last[client] = kind
            if kind == "join":
                view.add(client)
                seen.add(client)
            else:
                assert client in seen, "a leave of one that was never seen"
                view.discard(client)
        heard.clear()

    def look(self, name: str) -> None:
        self.hear(name)
        self.views[name] = look(self.world, self.seats[name])
        self.seen[name] |= self.views[name]

    def listen(self, member: ScriptedMember) -> None:
        name = member.name
        if name in self.seats:
            self.hear(name)
            member.leave(self.seats.pop(name))
            return
        self.seats[name] = join(member, receives_join_leave=True)
        self.last[name], self.views[name], self.seen[name] = {}, set(), set()
        self.look(name)

    def step(self) -> None:
        rng = self.rng
        action = rng.randrange(6)
        listening = [one.name for one in self.ears if one.name in self.seats]
        if action == 0:
            self.listen(rng.choice(self.ears))
        elif action == 1 and listening:
            self.look(rng.choice(listening))
        elif action == 2:
            self.world.clock.advance(rng.choice([0.01, 0.05, 0.1, 0.3]))
        elif action > 2:
            member = rng.choice(self.others)
            if member.name in self.seats:
                member.leave(self.seats.pop(member.name))
            else:
                self.seats[member.name] = join(member, **SENDS)


@pytest.mark.parametrize("seed", range(20))
def test_whoever_applies_what_it_is_told_has_what_presence_shows(seed: int) -> None:
    print("seed", seed)
    walk = Walk(seed)
    for _ in range(400):
        walk.step()
    walk.world.clock.advance(5.0)
    assert walk.world.clock.pending == []
    for member in walk.ears:
        if member.name in walk.seats:
            walk.hear(member.name)
            seat = walk.seats[member.name]
            assert walk.views[member.name] == look(walk.world, seat)
