"""An outbox whose messages are bytes: joined without a gap, and counted as they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import CodecError
from tests.connections.test_outbox import Bench, spin


class Letters:
    """Messages of as many bytes as their text says, as 3a for b"aaa"; x has no form."""

    gap = 0
    plain = False
    size = staticmethod(len)
    join = b"".join

    @staticmethod
    def encode(text: str) -> bytes:
        if text == "x":
            raise CodecError("x")
        return int(text[:-1]) * text[-1:].encode()


def bench(**bounds: int) -> Bench:
    return Bench(encoding=Letters(), **bounds)


def test_messages_are_joined_without_a_gap() -> None:
    world = bench()
    for text in ("1a", "3b", "2c"):
        world.outbox.put(text)
    assert world.outbox.size == 6
    world.turns.run()
    assert world.frames == [b"abbbcc"]
    assert world.outbox.size == 0


def test_one_message_is_the_object_that_the_encoding_gave() -> None:
    # So that a thousand subscribers share it.
    data = b"shared"

    class Shared(Letters):
        @staticmethod
        def encode(text: str) -> bytes:
            return data

    world = Bench(encoding=Shared())
    world.outbox.put("1a")
    world.turns.run()
    assert world.frames[0] is data


@pytest.mark.parametrize(
    ("texts", "frames"),
    [
        (["4a", "4b"], [8]),
        (["4a", "5b"], [4, 5]),
        (["4a", "4b", "1c"], [8, 1]),
        (["9a", "1b"], [9, 1]),
        (["1a"] * 17, [8, 8, 1]),
    ],
)
def test_frames_are_bounded_in_bytes(texts: list[str], frames: list[int]) -> None:
    world = bench(frame_size=8)
    for text in texts:
        world.outbox.put(text)
    world.turns.run()
    assert [len(frame) for frame in world.frames] == frames
    assert world.outbox.size == 0


@pytest.mark.parametrize(
    ("texts", "overflow"),
    [
        (["5a", "5b"], False),
        (["5a", "6b"], True),
        (["10a", "1b"], True),
        (["11a"], False),
        (["1a"] * 10, False),
        (["1a"] * 11, True),
    ],
)
def test_overflow_is_met_exactly(texts: list[str], overflow: bool) -> None:
    world = bench(queue_size=10)
    for text in texts:
        world.outbox.put(text)
    assert world.failures == ([3008] if overflow else [])


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 20))
def test_everything_is_written_once_and_in_order(sizes: list[int], limit: int) -> None:
    world = bench(frame_size=limit)
    letters = "abcdefghij"
    texts = [f"{size}{letters[n % 10]}" for n, size in enumerate(sizes)]
    for text in texts:
        world.outbox.put(text)
    assert world.outbox.size == sum(sizes)
    world.turns.run()
    assert b"".join(world.frames) == b"".join(map(Letters.encode, texts))
    # Each frame is as full as it may be.
    assert all(len(f) <= max(limit, 9) for f in world.frames)
    assert world.outbox.sent == len(texts)
    assert (world.outbox.size, world.outbox.dropped) == (0, 0)


def test_what_has_no_form_ends_the_connection_before_what_follows() -> None:
    world = bench()
    for text in ("1a", "x", "1b"):
        world.outbox.put(text)
    assert world.failures == [3506]
    world.turns.run()
    assert world.frames == []
    assert world.events[-1] == "end"
    assert world.outbox.dropped == 2  # with the one that waited; none comes after


async def test_what_has_no_form_waits_for_the_write_under_way() -> None:
    world = bench()
    world.stick()
    world.outbox.put("1a")
    world.turns.run()
    world.outbox.put("x")
    assert world.failures == [3506]
    assert "end" not in world.events
    world.free()
    await spin()
    assert world.frames == [b"a"]
    assert world.events[-1] == "end"
