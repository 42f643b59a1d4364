"""What a hint is believed: its signature, its age, its number and its size."""

from __future__ import annotations

import pytest

from service.broker import hints
from service.broker.hints import AGE, SIZE, VERSION, Forged, Hints
from service.core.broker import LATE
from service.core.model import Channel, Position, Publication, RawJson
from service.core.ports import Committed
from tests.clock import VirtualClock

KEY = "k" * 32
CHANNEL = Channel("room")


def committed(*offsets: int, size: int = 2, epoch: str = "e") -> list[Committed]:
    data = RawJson('"' + "x" * (size - 2) + '"')
    return [
        Committed(CHANNEL, Publication(n, data, time=7), epoch if n else "")
        for n in offsets
    ]


class Pair:
    """Two processes with one key."""

    def __init__(self, key: str = KEY, scope: str = "table") -> None:
        self.clock = VirtualClock()
        self.sender = Hints(KEY, "sender", "table", self.clock)
        self.receiver = Hints(key, "receiver", scope, self.clock)
        self.topic = self.sender.topic("channel", CHANNEL)

    def sent(self, *offsets: int, size: int = 2) -> list[bytes]:
        return list(self.sender.of_commit(self.topic, committed(*offsets, size=size)))

    def offsets(self, data: bytes) -> list[int]:
        hint = self.receiver.read(self.topic, CHANNEL, data)
        assert hint is not None
        return [one.publication.offset for one in hint.publications]


def test_a_hint_carries_what_was_committed() -> None:
    pair = Pair()
    every = [
        Committed(
            CHANNEL,
            Publication(3, RawJson("{}"), RawJson('{"user":"u"}'), RawJson("{}"), 7),
            "e",
            True,
            False,
        ),
        Committed(CHANNEL, Publication(0, RawJson("1")), "", False, True),
    ]
    (data,) = pair.sender.of_commit(pair.topic, every)
    hint = pair.receiver.read(pair.topic, CHANNEL, data)
    assert hint is not None and hint.whole
    assert hint.top == Position(3, "e")
    for one, other in zip(hint.publications, every, strict=True):
        assert one[2:] == other[2:]
        for name in ("offset", "data", "info", "tags", "time"):
            assert getattr(one.publication, name) == getattr(other.publication, name)


def test_what_this_process_sent_says_nothing_to_it() -> None:
    pair = Pair()
    (data,) = pair.sent(1)
    assert pair.sender.read(pair.topic, CHANNEL, data) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:15],
        lambda data: b"",
        lambda data: data[16:],
    ],
)
def test_what_is_not_signed_is_refused(change) -> None:
    pair = Pair()
    (data,) = pair.sent(1)
    with pytest.raises(Forged):
        pair.receiver.read(pair.topic, CHANNEL, change(data))


def test_a_hint_of_another_channel_key_or_table_is_refused() -> None:
    pair = Pair()
    (data,) = pair.sent(1)
    other = pair.sender.topic("channel", Channel("other"))
    with pytest.raises(Forged):
        pair.receiver.read(other, Channel("other"), data)
    with pytest.raises(Forged):
        Pair(key="o" * 32).receiver.read(pair.topic, CHANNEL, data)
    # Another table's topics are others, so it is not even heard.
    assert Pair(scope="t2").receiver.topic("channel", CHANNEL) != pair.topic
    assert b"room" not in pair.topic and b"room" not in data


def test_an_old_hint_says_only_that_the_top_has_moved() -> None:
    for late in (AGE + 0.1, -AGE - 0.1):
        pair = Pair()
        (data,) = pair.sent(0, 1)
        pair.clock.jump(late)
        hint = pair.receiver.read(pair.topic, CHANNEL, data)
        assert hint == (Position(1, "e"), [], False, [])


def test_what_is_not_stored_is_believed_once_and_in_order() -> None:
    pair = Pair()
    (first,), (second,), (third,) = pair.sent(0), pair.sent(0, 1), pair.sent(0)
    assert pair.offsets(second) == [0, 1]
    assert pair.offsets(first) == []  # late: it was passed over
    assert pair.offsets(second) == [1]  # a copy
    assert pair.offsets(third) == [0]


def test_beyond_the_size_the_position_is_sent_alone() -> None:
    pair = Pair()
    (data,) = pair.sent(1, 2, size=SIZE // 3)
    assert pair.offsets(data) == [1, 2]
    (data,) = pair.sent(3, 4, size=SIZE // 2)
    assert len(data) < 200
    hint = pair.receiver.read(pair.topic, CHANNEL, data)
    assert hint == (Position(4, "e"), [], False, [])
    # What is not stored anywhere is carried in any case.
    stored, unstored = pair.sent(5, 0, size=SIZE)
    assert pair.offsets(stored) == []
    assert pair.offsets(unstored) == [0]


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    with monkeypatch.context() as patched:
        patched.setattr(hints, "VERSION", VERSION + 1)
        (data,) = pair.sent(1)
    with pytest.raises(Forged):
        pair.receiver.read(pair.topic, CHANNEL, data)


def test_a_signal_is_believed_once_in_its_order_and_for_a_while() -> None:
    pair = Pair()
    first, second, third = (
        pair.sender.of_signal(pair.topic, text) for text in ("one", "two", "three")
    )

    def heard(data: bytes) -> list[str]:
        hint = pair.receiver.read(pair.topic, CHANNEL, data)
        assert hint is not None
        assert (hint.publications, hint.top) == ([], None)
        return hint.signals

    assert heard(second) == ["two"]
    assert heard(second) == heard(first) == []  # doubled, and late
    pair.clock.advance(AGE + 0.1)
    assert heard(third) == []
    assert pair.sender.read(pair.topic, CHANNEL, first) is None  # its own
    with pytest.raises(Forged):  # copied to another channel
        pair.receiver.read(pair.sender.topic("channel", "other"), CHANNEL, third)


def test_a_message_is_for_one_process_and_comes_once() -> None:
    pair = Pair()
    topic = pair.sender.topic("process", "receiver")
    one, two = (pair.sender.of_message(topic, data) for data in (b"1", b"2"))
    assert pair.receiver.read_message(topic, one) == ("sender", b"1")
    assert pair.receiver.read_message(topic, one) is None  # a copy
    assert pair.receiver.read_message(topic, two) == ("sender", b"2")
    late = pair.sender.of_message(topic, b"3")
    pair.clock.advance(LATE + 1)
    assert pair.receiver.read_message(topic, late) is None
    fresh = pair.sender.of_message(topic, b"4")
    (hint,) = pair.sent(1)
    other = pair.sender.topic("process", "another")
    for where, forged in (
        (other, fresh),
        (topic, fresh[:-1] + b"5"),
        (topic, fresh[:3]),
        (pair.topic, hint),  # not a message
        (topic, Hints("x" * 32, "sender", "table", pair.clock).of_message(topic, b"")),
    ):
        with pytest.raises(Forged):
            pair.receiver.read_message(where, forged)
    assert pair.receiver.read_message(topic, fresh) == ("sender", b"4")
