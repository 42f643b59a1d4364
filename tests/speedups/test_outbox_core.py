"""Delivery and joined frames: one contract, run on the two sides of the outbox.

The outbox as a whole is tested in tests/connections, on the side that the install has.
"""

import pytest

from _speedups.outbox_py import PORTION
from tests.speedups.twins import OUTBOX


class Lines:
    """Messages of text, a line each."""

    plain = True
    gap = 1
    size = staticmethod(len)
    join = staticmethod("\n".join)


class Bench:
    def __init__(self, side):
        self.side = side
        self.turns = []
        self.now = 0.0
        self.flushes = side.FlushQueue(self.turns.append, lambda: self.now)

        class Outbox(side.OutboxCore):
            __slots__ = ("drained", "error")

            def _drained(self):
                self.drained += 1

            def _broken(self, error):
                self.error = error
                return False

        self.kind = Outbox

    def outbox(self, frame_size=100):
        frames = []
        outbox = self.kind(frames.append, Lines(), 1000, frame_size, self.flushes)
        outbox.drained, outbox.error = 0, None
        return outbox, frames

    def turn(self):
        calls, self.turns[:] = self.turns[:], []
        for call in calls:
            call()


@pytest.fixture(params=OUTBOX)
def bench(request):
    return Bench(request.param)


def subscription(bench, put, offset=1, epoch="e"):
    made = bench.side.SubscriptionCore(put)
    made.live, made.next, made.epoch = True, offset, epoch
    return made


def test_each_offset_goes_to_those_that_expect_it(bench):
    outbox, frames = bench.outbox()
    got = []
    ready = subscription(bench, outbox.put)
    other = subscription(bench, got.append)
    had, lacks = subscription(bench, got.append, 2), subscription(bench, None, 0)
    silent = subscription(bench, None)
    silent.live = False
    elsewhere = subscription(bench, None, 2, "f")
    every = (ready, other, had, lacks, silent, elsewhere)
    assert bench.side.deliver(every, 1, "e", "push") == [lacks, elsewhere]
    assert got == ["push"]
    assert [one.next for one in every] == [2, 2, 2, 0, 1, 2]
    bench.turn()
    assert frames == ["push"]


def test_one_that_a_put_has_ended_is_not_written_to(bench):
    def end(push):
        last.live = False

    first, last = subscription(bench, end), subscription(bench, None)
    assert bench.side.deliver((first, last), 1, "e", "push") == []
    assert last.next == 1


def test_the_same_backlog_is_joined_once_for_all(bench):
    (one, first), (two, second), (three, third) = (bench.outbox() for _ in range(3))
    words = ["a" * 30, "b" * 30, "c" * 30]
    for outbox in (one, two):
        for word in words:
            outbox.put(word)
    for word in ("a" * 30, "d" * 30, "c" * 30):  # as many, and others
        three.put(word)
    bench.turn()
    assert first == ["\n".join(words)]
    assert second[0] is first[0]
    assert third[0] == "\n".join(("a" * 30, "d" * 30, "c" * 30))
    assert (one.sent, two.sent, three.sent) == (3, 3, 3)


def test_a_backlog_is_cut_into_frames_in_order(bench):
    outbox, frames = bench.outbox(frame_size=5)
    for word in ("a", "b", "c", "dddddd", "e", "f"):
        outbox.put(word)
    bench.turn()
    assert frames == ["a\nb\nc", "dddddd", "e\nf"]
    assert outbox.sent == 6


def test_sizes_are_those_of_the_bytes(bench):
    outbox, frames = bench.outbox(frame_size=5)
    outbox.put("é")
    outbox.put("é")
    outbox.put("é")
    bench.turn()
    assert frames == ["é\né", "é"]


def test_it_is_told_of_a_drain_if_it_asks_or_has_some_behind(bench):
    outbox, _ = bench.outbox()
    outbox.put("a")
    bench.turn()
    assert outbox.drained == 1
    outbox.watched = False
    outbox.put("a")
    bench.turn()
    assert outbox.drained == 1
    outbox.behind[outbox] = None
    outbox.put("a")
    bench.turn()
    assert outbox.drained == 2


def test_what_is_written_is_activity_at_the_time_of_the_turn(bench):
    class Record:
        active = 0.0

    outbox, _ = bench.outbox()
    outbox.activity = record = Record()
    bench.now = 7.0
    outbox.put("a")
    assert record.active == 0.0
    bench.turn()
    assert record.active == 7.0


def test_a_portion_is_flushed_in_a_turn(bench):
    count = 2 * PORTION + 1
    every = [bench.outbox() for _ in range(count)]
    for outbox, _ in every:
        outbox.put("a")
    for flushed in (PORTION, 2 * PORTION, count):
        bench.turn()
        assert sum(len(frames) for _, frames in every) == flushed
    assert bench.turns == []


def test_a_flush_that_fails_lets_the_others_be_flushed(bench):
    class Broken:
        def flush(self):
            raise RuntimeError("a bug")

    outbox, frames = bench.outbox()
    bench.flushes.add(Broken())
    outbox.put("a")
    with pytest.raises(RuntimeError):
        bench.turn()
    bench.turn()
    assert frames == ["a"]


def test_a_write_that_raises_is_told(bench):
    outbox, _ = bench.outbox()

    def send(frame):
        raise OSError("gone")

    outbox._send = send
    outbox.put("a")
    bench.turn()
    assert isinstance(outbox.error, OSError)
