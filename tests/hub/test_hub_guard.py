"""The guard: what the hub writes when its feed is late, doubled or reordered."""

from __future__ import annotations

import json

import pytest

from service.core.errors import StoreUnavailable
from service.core.model import (
    Appended,
    Channel,
    Draft,
    HistoryPage,
    Joined,
    Position,
    RawJson,
)
from tests.world.script import KEPT, NOT_KEPT, A, B, committed
from tests.world.scripted import ScriptedWorld


def test_a_publication_reaches_every_member_of_its_channel_and_no_other() -> None:
    world = ScriptedWorld()
    first, _ = world.live(A)
    second, _ = world.live(A)
    other, _ = world.live(B)
    world.store.commit(A, '{"x":1}')
    world.store.tell()
    assert first.waiting == second.waiting
    assert [json.loads(text) for text in first.waiting] == [
        {"push": {"channel": "a", "pub": {"data": {"x": 1}, "offset": 1}}}
    ]
    assert other.waiting == []


def test_publish_hands_the_draft_to_the_store_within_the_call() -> None:
    world = ScriptedWorld()
    outcomes: list[object] = []
    draft = Draft(RawJson("1"))
    world.hub.publish(A, draft, KEPT, outcomes.append)
    [(channel, given, history, done)] = world.store.appended
    assert (channel, given, history) == ("a", draft, KEPT)
    outcome = Appended(Position(1, "e"), True)
    done(outcome)
    assert outcomes == [outcome]


def test_a_commit_to_a_channel_nobody_listens_to_is_nothing() -> None:
    world = ScriptedWorld()
    world.store.publish(A, 3)
    assert (world.channels, world.subscriptions) == (0, 0)


def test_a_batch_is_delivered_in_its_order() -> None:
    world = ScriptedWorld()
    member, _ = world.live()
    world.store.publish(A, 100)
    assert member.offsets() == list(range(1, 101))


def test_a_doubled_commit_is_written_once() -> None:
    world = ScriptedWorld()
    member, _ = world.live()
    world.store.publish(A, 3)
    for again in (3, 2, 1, 3):
        world.told(committed(world.store.stream(A), again))
    assert member.offsets() == [1, 2, 3]
    assert world.store.reads == []
    world.store.publish(A)
    assert member.offsets() == [1, 2, 3, 4]


def test_a_commit_ahead_is_not_written_and_the_gap_is_read() -> None:
    world = ScriptedWorld()
    member, _ = world.live()
    world.store.commit(A, "1", "1", "1")
    one, two, three = world.store.untold
    world.told(one)
    member.drain()
    world.told(three)
    assert member.offsets() == [1]
    [read] = world.store.reads
    assert read.since == 1
    world.told(two)  # it comes after all: the read is what fills the gap
    assert member.offsets() == [1]
    read.finish()
    assert member.offsets() == [1, 2, 3]
    member.drain()
    world.store.untold.clear()
    world.store.publish(A)
    assert member.offsets() == [1, 2, 3, 4]
    assert world.store.reads == []


def test_a_gap_waits_until_a_busy_member_has_written_what_it_had() -> None:
    world = ScriptedWorld()
    member, _ = world.live()
    world.store.publish(A)
    assert not member.idle
    world.store.commit(A, "1", "1")
    world.store.untold.pop(0)
    world.store.tell()
    assert world.store.reads == []
    member.drain()
    [read] = world.store.reads
    read.finish()
    assert member.offsets() == [1, 2, 3]


def test_a_gap_is_filled_from_memory_at_once() -> None:
    world = ScriptedWorld(in_memory=True)
    member, _ = world.live()
    world.store.commit(A, *["1"] * 5)
    del world.store.untold[:4]
    world.store.tell()
    assert member.offsets() == [1, 2, 3, 4, 5]


def test_a_gap_that_was_trimmed_ends_the_subscription() -> None:
    world = ScriptedWorld()
    member, seat = world.live()
    world.store.commit(A, *["1"] * 5)
    del world.store.untold[:4]
    world.store.trim(A, 2)
    world.store.tell()
    world.store.reads[0].finish()
    assert member.offsets() == []
    assert seat.lost
    assert member.behind == {}
    assert (world.channels, world.subscriptions) == (0, 0)


def test_a_gap_of_which_nothing_is_left_ends_the_subscription() -> None:
    world = ScriptedWorld()
    _, seat = world.live()
    world.store.commit(A, "1", "1")
    del world.store.untold[0]
    world.store.trim(A, 0)
    world.store.tell()
    world.store.reads[0].finish()
    assert seat.lost


def test_a_gap_that_cannot_be_read_ends_the_subscription() -> None:
    world = ScriptedWorld()
    _, seat = world.live()
    world.store.commit(A, "1", "1")
    del world.store.untold[0]
    world.store.tell()
    world.store.reads[0].finish(StoreUnavailable("locked"))
    assert seat.lost


def test_a_store_that_went_back_ends_the_subscription() -> None:
    world = ScriptedWorld()
    member, seat = world.live()
    world.store.publish(A, 5)
    member.drain()
    world.told(committed(world.store.stream(A), 9))
    [read] = world.store.reads
    read.finish(HistoryPage([], Position(3, world.store.stream(A).epoch)))
    assert seat.lost


def test_a_new_epoch_ends_the_subscription_without_a_push() -> None:
    world = ScriptedWorld()
    member, seat = world.live()
    world.store.publish(A, 2)
    member.drain()
    world.store.restart(A)
    world.store.commit(A, "1", "1", "1")
    world.store.tell(1)
    assert member.offsets() == [1, 2]
    world.store.reads[0].finish()
    assert seat.lost
    assert member.offsets() == [1, 2]


def test_a_new_epoch_whose_offset_would_fit_is_not_taken_for_the_next() -> None:
    world = ScriptedWorld()
    member, seat = world.live()
    world.store.publish(A, 2)
    member.drain()
    world.store.restart(A)
    world.store.commit(A, "1", "1", "1")
    world.told(world.store.untold[2])  # offset 3, as expected; epoch is not
    assert member.offsets() == [1, 2]
    world.store.reads[0].finish()
    assert seat.lost


def test_a_late_commit_of_an_old_epoch_costs_nothing() -> None:
    world = ScriptedWorld()
    world.store.publish(A, 3)
    [*_, late] = world.store.told
    world.store.restart(A)
    world.store.publish(A, 2)
    member, seat = world.live()
    world.told(late)
    for read in tuple(world.store.reads):
        read.finish()
    member.drain()
    world.store.publish(A)
    assert member.offsets() == [3]
    assert not seat.lost


def test_without_history_everything_is_written_as_it_comes() -> None:
    world = ScriptedWorld()
    member = world.member()
    seat = member.join(A, history=NOT_KEPT)
    assert seat.outcome == Joined(None, None)
    world.store.commit(A, "1", "2", skip_history=True)
    world.store.tell()
    assert seat.loose == 2
    assert [json.loads(text)["push"]["pub"] for text in member.waiting[1:]] == [
        {"data": 1},
        {"data": 2},
    ]
    member.leave(seat)
    world.store.commit(A, "3", skip_history=True)
    world.store.tell()
    assert seat.loose == 2


def test_without_history_a_position_asked_for_is_not_recovered() -> None:
    world = ScriptedWorld()
    seat = world.member().join(A, Position(5, "old"), history=NOT_KEPT)
    assert seat.outcome == Joined(None, None)


def test_a_publication_without_offset_moves_no_position() -> None:
    world = ScriptedWorld()
    member, seat = world.live()
    world.store.publish(A)
    world.store.commit(A, "9", skip_history=True)
    world.store.tell()
    world.store.publish(A)
    assert member.offsets() == [1, 2]
    assert seat.loose == 1


def test_a_publication_without_offset_is_not_written_before_the_reply() -> None:
    world = ScriptedWorld()
    member = world.member()
    seat = member.join(A)
    world.store.commit(A, "9", skip_history=True)
    world.store.tell()
    assert member.waiting == []
    world.store.reads[0].finish()
    world.store.commit(A, "9", skip_history=True)
    world.store.tell()
    assert seat.loose == 1


@pytest.mark.parametrize("skip_history", [True, False])
def test_a_member_that_leaves_during_a_delivery_gets_nothing_of_it(
    skip_history: bool,
) -> None:
    # The member that is served first makes the other leave: I4 holds from then on.
    world = ScriptedWorld()
    one, first = world.live()
    two, second = world.live()
    world.store.publish(A)
    one.on_put = lambda _: two.leave(second)
    two.on_put = lambda _: one.leave(first)
    world.store.commit(A, "1", skip_history=skip_history)
    world.store.tell()
    assert first.ended != second.ended


def test_a_member_that_ends_itself_in_a_piece_is_not_kept() -> None:
    # An overflow ends the connection from inside put, here at a piece's last message.
    world = ScriptedWorld(in_memory=True)
    world.store.publish(A, 3)
    member = world.member()
    seat = member.join(A, Position(0, ""))
    assert seat.offsets == [1, 2, 3]
    member.drain()
    world.store.commit(A, *["1"] * 70)
    last = world.store.untold[-1]
    world.store.untold.clear()

    def end(text: str) -> None:
        if f'"offset":{3 + 64}' in text:
            member.leave(seat)

    member.on_put = end
    world.told(last)
    assert seat.offsets[-1] == 67
    assert member.behind == {}
    assert world.subscriptions == 0


def test_recovery_begins_after_the_position_asked_for() -> None:
    world = ScriptedWorld()
    world.store.publish(A, 10)
    member = world.member()
    epoch = world.store.stream(A).epoch
    seat = member.join(A, Position(7, epoch))
    world.store.reads[0].finish()
    assert isinstance(seat.outcome, Joined)
    assert seat.outcome.top == Position(10, epoch)
    assert seat.offsets == [8, 9, 10]
    world.store.publish(A)
    assert seat.offsets == [8, 9, 10, 11]


@pytest.mark.parametrize(
    ("asked", "recovered"),
    [
        (Position(10, "epoch1"), []),
        (Position(10, ""), []),
        (Position(9, ""), [10]),
        (Position(5, "epoch1"), [6, 7, 8, 9, 10]),  # 6 is the oldest kept
        (Position(4, "epoch1"), None),
        (Position(0, ""), None),
        (Position(11, "epoch1"), None),  # ahead of the stream
        (Position(2**53 - 1, ""), None),
        (Position(10, "epoch2"), None),
        (Position(0, "_"), None),  # the SDKs' marker for "cannot match"
    ],
)
def test_recovered_or_not(asked: Position, recovered: list[int] | None) -> None:
    world = ScriptedWorld()
    world.store.publish(A, 10)
    world.store.trim(A, 5)
    member = world.member()
    seat = member.join(A, asked)
    world.store.reads[0].finish()
    assert isinstance(seat.outcome, Joined)
    if recovered is None:
        assert seat.outcome.recovered is None
    else:
        assert seat.offsets == recovered
    world.store.publish(A)
    assert seat.offsets == [*(recovered or []), 11]


def test_an_empty_stream_is_recovered_from_its_beginning() -> None:
    world = ScriptedWorld()
    seat = world.member().join(A, Position(0, ""))
    world.store.reads[0].finish()
    assert isinstance(seat.outcome, Joined)
    assert seat.outcome == Joined(Position(0, "epoch1"), [])


@pytest.mark.parametrize(("gap", "recovered"), [(20, True), (21, False)])
def test_a_gap_above_the_limit_is_lost(gap: int, recovered: bool) -> None:
    world = ScriptedWorld(recovery_limit=20)
    world.store.publish(A, gap)
    seat = world.member().join(A, Position(0, ""))
    world.store.reads[0].finish()
    assert isinstance(seat.outcome, Joined)
    assert (seat.outcome.recovered is not None) is recovered


def test_a_join_that_cannot_read_is_over() -> None:
    world = ScriptedWorld()
    member = world.member()
    seat = member.join(A)
    error = StoreUnavailable("locked")
    world.store.reads[0].finish(error)
    assert seat.outcome is error
    assert world.channels == 0
    world.store.publish(A)
    assert member.waiting == ["reply"]
    assert member.losses == []


def test_recovery_goes_out_in_pieces_each_when_the_last_is_written() -> None:
    world = ScriptedWorld(recovery_size=1000)
    world.store.commit(A, *['"' + "x" * 300 + '"'] * 10)
    world.store.tell()
    member = world.member()
    seat = member.join(A, Position(0, ""))
    world.store.reads[0].finish()
    assert seat.offsets == [1, 2, 3]
    assert world.store.reads == []  # nothing is read before the reply is written
    pieces = []
    while member.behind:
        member.drain()
        [read] = world.store.reads
        read.finish()
        pieces.append(len(member.waiting))
    assert pieces == [3, 3, 1]
    assert seat.offsets == list(range(1, 11))


def test_a_publication_larger_than_a_piece_goes_out_alone() -> None:
    world = ScriptedWorld(recovery_size=100)
    world.store.commit(A, *['"' + "x" * 300 + '"'] * 3)
    world.store.tell()
    member = world.member()
    seat = member.join(A, Position(0, ""))
    world.store.reads[0].finish()
    # Not in the reply, for which clients wait 5 s only.
    assert isinstance(seat.outcome, Joined)
    assert (seat.outcome.recovered, member.given) == ([], 0)
    for offset in (1, 2, 3):
        member.drain()
        world.store.reads[0].finish()
        assert seat.offsets[-1:] == [offset] == [member.given // 302]


def test_a_piece_is_bounded_in_bytes_not_in_characters() -> None:
    # Four bytes each: 262,144 of them fill the outbox's megabyte on their own.
    world = ScriptedWorld(recovery_size=1000)
    world.store.commit(A, *['"' + "\N{GRINNING FACE}" * 100 + '"'] * 5)
    world.store.tell()
    seat = world.member().join(A, Position(0, ""))
    world.store.reads[0].finish()
    assert seat.offsets == [1, 2]


def test_live_publications_come_after_the_pieces() -> None:
    world = ScriptedWorld(recovery_size=3)
    world.store.commit(A, *["1"] * 9)
    world.store.tell()
    member = world.member()
    seat = member.join(A, Position(0, ""))
    world.store.reads[0].finish()
    world.store.publish(A, 2)
    assert seat.offsets == [1, 2, 3]
    while member.behind:
        member.drain()
        world.store.reads[0].finish()
    assert seat.offsets == list(range(1, 12))


def test_the_history_is_trimmed_between_two_pieces() -> None:
    world = ScriptedWorld(recovery_size=3)
    world.store.commit(A, *["1"] * 9)
    world.store.tell()
    member = world.member()
    seat = member.join(A, Position(0, ""))
    world.store.reads[0].finish()
    world.store.trim(A, 2)
    member.drain()
    world.store.reads[0].finish()
    assert seat.offsets == [1, 2, 3]
    assert seat.lost


def test_reads_of_clients_pass_through_with_all_their_arguments() -> None:
    world = ScriptedWorld(in_memory=True)  # memory answers forward reads only
    world.store.publish(A, 5)
    pages: list[object] = []
    assert world.hub.read(A, KEPT, 4, 2, pages.append, reverse=True) is None
    [read] = world.store.reads
    assert (read.channel, read.since, read.limit) == ("a", 4, 2)
    read.finish()
    [first] = pages
    second = world.hub.read(A, KEPT, None, 2, pages.append)
    assert pages == [first]  # what is returned is not told of again
    assert isinstance(first, HistoryPage)
    assert isinstance(second, HistoryPage)
    assert [p.offset for p in first.publications] == [3, 2]
    assert [p.offset for p in second.publications] == [1, 2]


def test_a_read_that_fails_is_an_outcome() -> None:
    world = ScriptedWorld()
    outcomes: list[object] = []
    world.hub.read(A, KEPT, None, 1, outcomes.append)
    error = StoreUnavailable("locked")
    world.store.reads[0].finish(error)
    assert outcomes == [error]


def test_channels_are_quoted_once_and_right() -> None:
    channel = Channel('a"\\b')
    world = ScriptedWorld()
    member, _ = world.live(channel)
    world.store.publish(channel)
    assert json.loads(member.waiting[0])["push"]["channel"] == channel
