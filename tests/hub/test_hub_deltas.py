"""Deltas: each order of events that `service.hub.deltas` names, and random ones.

The client is `Seat`, which applies every delta to what it got before, in the reply and
in pushes, with the reader of tests/speedups; a wrong base fails its checksum.
"""

from __future__ import annotations

from random import Random
from typing import Any

from service.core.model import Joined, Position, Publication, RawJson
from service.core.ports import Committed
from service.protocol.protobuf import Protobuf
from tests.world.script import NOT_KEPT, A, B, ScriptedMember, Seat
from tests.world.scripted import ScriptedWorld

TEXT = "a text that grows by a word each time, and is long enough for a delta "


def text(n: int) -> str:
    return f'"{TEXT}{" ".join(f"word{i}" for i in range(n))}"'


def follow(world: ScriptedWorld, **options: Any) -> tuple[ScriptedMember, Seat]:
    """Return a member that takes deltas of A from its top."""
    member = world.member()
    seat = member.join(A, delta=True, **options)
    if world.store.reads:
        world.store.reads[-1].finish()
    member.drain()
    return member, seat


def publish(world: ScriptedWorld, *numbers: int, **options: Any) -> None:
    world.store.commit(A, *map(text, numbers), **{"delta": True, **options})
    world.store.tell()


def kinds(seat: Seat) -> list[tuple[int, bool]]:
    """Return the offsets that came, and whether each came as a delta."""
    return [(offset, delta) for offset, _, delta in seat.payloads]


def drained(world: ScriptedWorld, *members: ScriptedMember) -> None:
    while world.store.reads or not all(member.idle for member in members):
        for read in tuple(world.store.reads):
            read.finish()
        for member in members:
            member.drain()


# What is a delta, and what is not.


def test_the_first_is_in_full_and_what_follows_are_deltas() -> None:
    world = ScriptedWorld()
    _, seat = follow(world)
    publish(world, 1, 2, 3)
    assert kinds(seat) == [(1, False), (2, True), (3, True)]
    assert [payload for _, payload, _ in seat.payloads] == [text(1), text(2), text(3)]


def test_a_publication_without_delta_is_in_full_and_the_next_one_builds_on_it() -> None:
    world = ScriptedWorld()
    _, seat = follow(world)
    publish(world, 1, 2)
    publish(world, 3, delta=False)
    publish(world, 4)
    assert kinds(seat) == [(1, False), (2, True), (3, False), (4, True)]
    assert seat.payloads[-1][1] == text(4)


def test_those_who_do_not_take_deltas_get_none() -> None:
    world = ScriptedWorld()
    member, _ = world.live()
    _, taker = follow(world)
    publish(world, 1, 2)
    assert [waiting.count('"delta"') for waiting in member.waiting] == [0, 0]
    assert kinds(taker) == [(1, False), (2, True)]


def test_without_history_too() -> None:
    world = ScriptedWorld()
    _, seat = follow(world, history=NOT_KEPT)
    publish(world, 1, 2, skip_history=True)
    assert kinds(seat) == [(0, False), (0, True)]
    assert seat.payloads[-1][1] == text(2)


def test_one_that_joins_later_begins_in_full_and_then_shares() -> None:
    world = ScriptedWorld()
    members = [follow(world)[0]]
    publish(world, 1)
    members.append(follow(world)[0])
    publish(world, 2)
    publish(world, 3)
    seats = [member.seats[A][-1] for member in members]
    assert kinds(seats[0]) == [(1, False), (2, True), (3, True)]
    assert kinds(seats[1]) == [(2, False), (3, True)]
    assert members[0].waiting[-1] is members[1].waiting[-1]


# I9.


def test_a_publication_is_encoded_three_times_at_most() -> None:
    world = ScriptedWorld()
    members = [follow(world)[0] for _ in range(20)]
    publish(world, 1)
    members += [follow(world)[0] for _ in range(20)]
    members += [world.live()[0] for _ in range(20)]
    publish(world, 2)
    texts = {id(member.waiting[-1]): member.waiting[-1] for member in members}
    assert len(texts) == 3
    codec = Protobuf()
    encoded = [codec.encode(member.waiting[-1]) for member in members]
    assert len(set(map(id, encoded))) == 3


def test_nothing_is_kept_or_made_where_nobody_takes_deltas() -> None:
    world = ScriptedWorld()
    member, seat = follow(world)
    world.live()
    publish(world, 1, 2)
    topic = seat.subscription.topic
    assert topic.newest == text(2)
    member.leave(seat)
    assert topic.newest is None
    publish(world, 3)
    assert topic.newest is None
    assert world.store.told[-1].publication.patch is None


def test_live_subscriptions_hold_one_text() -> None:
    # Each read makes publications of its own, of equal text.
    world = ScriptedWorld()
    publish(world, 1, 2)
    seats = []
    for _ in range(3):
        member = world.member()
        seats.append(member.join(A, Position(0, ""), delta=True))
        publications = [Publication(n, RawJson("".join([*text(n)]))) for n in (1, 2)]
        page = world.store.reads[0].page._replace(publications=publications)
        world.store.reads[0].finish(page)
    assert len({id(seat.subscription.base) for seat in seats}) == 1
    publish(world, 3)
    assert [kinds(seat) for seat in seats] == [[(1, False), (2, True), (3, True)]] * 3
    assert len({id(seat.subscription.base) for seat in seats}) == 1


# Recovery and catch-up.


def test_a_recovery_goes_on_where_its_reply_ended() -> None:
    world = ScriptedWorld(recovery_size=200)
    publish(world, *range(1, 8))
    member = world.member()
    seat = member.join(A, Position(1, ""), delta=True)
    world.store.reads[0].finish()
    assert isinstance(seat.outcome, Joined)
    assert len(seat.outcome.recovered or []) == 2
    drained(world, member)
    publish(world, 8)
    assert kinds(seat) == [(2, False)] + [(n, True) for n in range(3, 9)]
    assert [payload for _, payload, _ in seat.payloads] == [*map(text, range(2, 9))]


def test_a_piece_is_measured_as_it_is_sent() -> None:
    world = ScriptedWorld(recovery_size=5000)
    publish(world, *range(200, 260))
    taker, other = world.member(), world.member()
    seats = [
        taker.join(A, Position(0, ""), delta=True),
        other.join(A, Position(0, "")),
    ]
    while world.store.reads:
        world.store.reads[0].finish()
    counts = [len(s.outcome.recovered) for s in seats]  # type: ignore[union-attr,arg-type]
    assert counts == [52, 3]


def test_those_who_recover_share_what_was_made() -> None:
    world = ScriptedWorld()
    publish(world, 1, 2)
    made = []
    for _ in range(2):
        member = world.member()
        member.join(A, Position(0, ""), delta=True)
        world.store.reads[0].finish()
        made.append(world.store.told[1].publication.patch)
    assert made[0] is not None
    assert made[0] is made[1]


def test_a_recovery_of_nothing_begins_in_full() -> None:
    # The client may have its position alone, without the payload.
    world = ScriptedWorld()
    publish(world, 1)
    member = world.member()
    seat = member.join(A, Position(1, ""), delta=True)
    world.store.reads[0].finish()
    publish(world, 2)
    assert kinds(seat) == [(2, False)]


def test_a_gap_that_is_filled() -> None:
    world = ScriptedWorld()
    member, seat = follow(world)
    publish(world, 1)
    world.store.commit(A, text(2), delta=True)
    world.store.untold.clear()  # another process's
    publish(world, 3)
    drained(world, member)
    publish(world, 4)
    assert kinds(seat) == [(1, False), (2, True), (3, True), (4, True)]
    assert seat.payloads[-1][1] == text(4)


def test_a_gap_that_is_skipped_begins_in_full() -> None:
    world = ScriptedWorld()
    member, seat = follow(world, positioned=False)
    publish(world, 1, 2)
    world.store.commit(A, text(3), text(4), delta=True)
    world.store.untold.clear()
    world.store.trim(A, 0)
    seat.expected = 5
    world.hub.position_check.begin_round()
    drained(world, member)
    publish(world, 5, 6)
    assert kinds(seat) == [(1, False), (2, True), (5, False), (6, True)]


def test_a_stream_that_restarts_begins_in_full() -> None:
    world = ScriptedWorld()
    member, seat = follow(world, positioned=False)
    publish(world, 1, 2)
    world.store.restart(A)
    publish(world, 3)
    drained(world, member)
    seat.expected = 2
    publish(world, 4, 5)
    assert kinds(seat) == [(1, False), (2, True), (2, False), (3, True)]
    assert seat.payloads[-1][1] == text(5)


# The orders of events that could break it.


def test_one_without_offset_between_two_with() -> None:
    world = ScriptedWorld()
    _, seat = follow(world)
    publish(world, 1)
    publish(world, 7, skip_history=True)
    publish(world, 2)
    assert kinds(seat) == [(1, False), (0, True), (2, True)]
    assert [payload for _, payload, _ in seat.payloads] == [text(1), text(7), text(2)]


def test_one_without_offset_to_a_subscription_that_is_behind() -> None:
    world = ScriptedWorld(recovery_size=1)
    _, live = follow(world)
    publish(world, 1, 2, 3)
    member = world.member()
    seat = member.join(A, Position(0, ""), delta=True)
    world.store.reads[0].finish()
    member.drain()
    world.store.reads[0].finish()
    assert kinds(seat) == [(1, False)]
    publish(world, 7, skip_history=True)
    drained(world, member)
    publish(world, 4)
    # The two were handed something else last; one of them gets it in full.
    assert kinds(seat) == [(1, False), (0, False), (2, True), (3, True), (4, True)]
    assert kinds(live)[-2:] == [(0, True), (4, False)]
    publish(world, 5)
    assert kinds(seat)[-1] == kinds(live)[-1] == (5, True)
    assert seat.payloads[-1][1] == live.payloads[-1][1] == text(5)


def test_one_that_is_told_twice_and_one_that_is_told_late() -> None:
    world = ScriptedWorld()
    _, seat = follow(world)
    publish(world, 1, 2, 3)
    world.told(*world.store.told[:2])
    publish(world, 4)
    assert kinds(seat) == [(1, False), (2, True), (3, True), (4, True)]
    assert seat.payloads[-1][1] == text(4)


def test_an_erasure_between_a_publication_and_the_next() -> None:
    world = ScriptedWorld()
    _, first = follow(world)
    publish(world, 1)
    world.store.blank(A)
    joiner = world.member()
    second = joiner.join(A, Position(0, ""), delta=True)
    world.store.reads[0].finish()
    assert second.payloads == [(1, "null", False)]
    publish(world, 2)
    assert kinds(first)[-1] == kinds(second)[-1] == (2, False)
    publish(world, 3)
    assert kinds(first)[-1] == kinds(second)[-1] == (3, True)
    assert first.payloads[-1][1] == second.payloads[-1][1] == text(3)


def test_one_that_becomes_live_while_others_are_handed_the_same() -> None:
    # The store answers from memory: filling the gap of one, in the middle of the
    # delivery to all, reaches the publication that is being delivered.
    world = ScriptedWorld()
    pairs = [follow(world) for _ in range(8)]
    publish(world, 1)
    world.store.in_memory = True
    for member, _ in pairs[:4]:
        member.drain()
    for _, seat in pairs[:4]:
        # As after a push that this process was not told of.
        seat.subscription.next = 1
        seat.expected = 1
    for member, _ in pairs:
        member.drain()
    publish(world, 2)
    drained(world, *(member for member, _ in pairs))
    publish(world, 3)
    for _, seat in pairs:
        assert seat.payloads[-1] == (3, text(3), True)


def test_a_member_that_ends_by_the_push_leaves_the_rest_with_their_deltas() -> None:
    world = ScriptedWorld()
    pairs = [follow(world) for _ in range(4)]
    publish(world, 1)
    member, seat = pairs[1]
    member.on_put = lambda _: member.leave(seat) if not seat.ended else None
    publish(world, 2, 3)
    for number, (_, other) in enumerate(pairs):
        if number != 1:
            assert kinds(other) == [(1, False), (2, True), (3, True)]


def test_the_last_one_leaves_and_another_comes() -> None:
    world = ScriptedWorld()
    world.live()
    member, seat = follow(world)
    publish(world, 1)
    member.leave(seat)
    publish(world, 2)
    _, other = follow(world)
    publish(world, 3, 4)
    assert kinds(other) == [(3, False), (4, True)]


# Any order.


class Walk:
    """Members, of whom two take deltas in each channel, in a random order of events."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        size = random.choice([1, 200, 100_000])
        self.world = ScriptedWorld(recovery_size=size)
        self.store = self.world.store
        self.members = [self.world.member() for _ in range(3)]
        self.numbers = 0
        self.deltas = 0
        self.texts: dict[tuple[Any, str, int], str] = {}  # as committed
        self.loose: set[str] = set()

    def commit(self) -> None:
        channel = self.random.choice([A, A, B])
        self.numbers = self.numbers % 40 + self.random.randint(0, 3)
        loose = self.random.random() < 0.15
        self.store.commit(
            channel,
            text(self.numbers),
            skip_history=loose,
            delta=self.random.random() < 0.8,
        )
        if loose:
            self.loose.add(text(self.numbers))
        else:
            stream = self.store.stream(channel)
            self.texts[channel, stream.epoch, stream.top] = text(self.numbers)

    def tell(self) -> None:
        self.store.tell(self.random.randint(1, 3))

    def tell_again(self) -> None:
        if self.store.told:
            self.world.hub.committed([self.random.choice(self.store.told)])

    def lose(self) -> None:
        """Another process committed them: nobody here is told."""
        self.store.untold.clear()

    def join(self) -> None:
        member = self.random.choice(self.members)
        channel = self.random.choice([A, B])
        seats = member.seats.get(channel)
        if seats and not seats[-1].ended:
            return
        asked = None
        if self.random.random() < 0.7:
            top = self.store.stream(channel).top
            asked = Position(max(0, top - self.random.randint(0, 5)), "")
        member.join(channel, asked, delta=member is not self.members[0])

    def leave(self) -> None:
        member = self.random.choice(self.members)
        for seats in member.seats.values():
            if not seats[-1].ended and self.random.random() < 0.3:
                member.leave(seats[-1])

    def read(self) -> None:
        if self.store.reads:
            read = self.random.choice(self.store.reads)
            if self.random.random() < 0.5:
                read.look()
            read.finish()

    def drain(self) -> None:
        self.random.choice(self.members).drain()

    def change(self) -> None:
        channel = self.random.choice([A, B])
        match self.random.randint(0, 4):
            case 0:
                self.store.blank(channel)
            case 1:
                self.store.trim(channel, self.random.randint(0, 3))
            case 2 if self.random.random() < 0.5:
                self.store.restart(channel)
            case 3:
                self.store.in_memory = not self.store.in_memory
            case _:
                self.world.hub.position_check.begin_round()

    def run(self) -> None:
        steps = [self.commit] * 4 + [self.tell] * 4 + [self.read, self.drain] * 2
        steps += [self.join] * 2 + [self.leave, self.change, self.tell_again, self.lose]
        for _ in range(60):
            self.random.choice(steps)()
        self.store.tell()
        drained(self.world, *self.members)
        for member in self.members[1:]:
            for channel, seats in member.seats.items():
                for seat in seats:
                    self.check(channel, seat)

    def check(self, channel: Any, seat: Seat) -> None:
        epoch = seat.subscription.epoch
        for offset, payload, delta in seat.payloads:
            self.deltas += delta
            if offset:
                expected = self.texts[channel, epoch, offset]
                assert payload in (expected, "null"), offset
            else:
                assert payload in self.loose


def test_any_order_gives_every_payload() -> None:
    deltas = 0
    for seed in range(1500):
        walk = Walk(seed)
        try:
            walk.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        deltas += walk.deltas
    assert deltas > 5000


def test_the_walk_notices_a_wrong_base() -> None:
    # The client of these tests can tell: a base that it was not handed is an error.
    world = ScriptedWorld()
    _, seat = follow(world)
    publish(world, 1)
    seat.subscription.base = seat.subscription.topic.newest = RawJson(text(9))
    try:
        world.told(
            Committed(
                A,
                Publication(2, RawJson(text(10))),
                world.store.stream(A).epoch,
                delta=True,
            )
        )
    except AssertionError:
        return
    raise AssertionError("a delta from a payload that the client has not")
