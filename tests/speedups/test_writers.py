"""Frames to a socket: one contract, run on both twins, over a real pair of sockets."""

import os
import socket

import pytest

from tests.speedups.twins import FRAMES

HIGH_WATER = 10


class Transport:
    """A transport that has a socket and sends nothing of what it is given."""

    def __init__(self):
        self.given = []
        self.waiting = 0
        self.closing = False

    def is_closing(self):
        return self.closing

    def get_write_buffer_size(self):
        return self.waiting

    def write(self, data):
        self.given.append(data)
        self.waiting += len(data)


class Bench:
    """A writer on a non-blocking socket, and the other end."""

    def __init__(self, side, near, far):
        self.transport = Transport()
        self.near, self.far = near, far
        self.socket = side.SocketWriter(self.transport, near.fileno())
        self.drains = []
        self.writer = side.FrameWriter(
            side.SharedFrame(), self.socket, HIGH_WATER, lambda: self.drains
        )


@pytest.fixture(params=FRAMES)
def bench(request):
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield Bench(request.param, near, far)


def fill(bench):
    """Write until the socket takes no more."""
    try:
        while True:
            bench.near.send(bytes(65536))
    except BlockingIOError:
        pass


def test_what_is_direct_is_at_the_peer_when_the_call_returns(bench):
    bench.socket.direct = True
    assert bench.socket.write(b"abc") == 0
    assert bench.far.recv(10) == b"abc"
    assert (bench.socket.written, bench.transport.given) == (3, [])


def test_what_is_not_direct_is_the_transports(bench):
    assert bench.socket.write(b"abc") == 3
    assert (bench.socket.written, bench.transport.given) == (3, [b"abc"])


def test_nothing_overtakes_what_the_transport_has(bench):
    bench.socket.direct = True
    fill(bench)
    assert bench.socket.write(b"1") == 1
    while True:  # the socket takes more now, but the transport has the first
        try:
            bench.far.recv(1 << 20)
        except BlockingIOError:
            break
    assert bench.socket.write(b"2") == 2
    assert bench.transport.given == [b"1", b"2"]
    bench.transport.waiting = 0
    assert bench.socket.write(b"3") == 0
    assert bench.far.recv(10) == b"3"
    assert bench.socket.written == 3


def test_the_rest_of_a_frame_that_was_taken_in_part_goes_to_the_transport(bench):
    bench.socket.direct = True
    data = os.urandom(1 << 22)  # more than a socket takes at once
    waiting = bench.socket.write(data)
    [rest] = bench.transport.given
    assert waiting == len(rest)
    assert 0 < len(rest) < len(data)
    assert bench.socket.written == len(data)
    got = b""
    while len(got) < len(data) - len(rest):
        got += bench.far.recv(1 << 20)
    assert got + rest == data


def test_an_error_is_left_to_the_transport(bench):
    bench.socket.direct = True
    bench.far.close()
    assert bench.socket.write(b"abc") == 3
    assert bench.transport.given == [b"abc"]
    bench.transport.closing = True
    bench.transport.waiting = 0
    assert bench.socket.write(b"abc") == 0
    assert (bench.socket.written, bench.transport.given) == (3, [b"abc"])


def test_nothing_is_written_once_it_is_not_open(bench):
    bench.socket.direct = True
    bench.socket.open = False
    assert bench.socket.write(b"abc") == 0
    assert (bench.socket.written, bench.transport.given) == (0, [])


def test_a_message_for_many_is_framed_once(bench):
    bench.writer.open = True
    word = "x" * 200
    for _ in range(3):
        bench.writer.write(word)
    first = bench.transport.given[0]
    assert all(given is first for given in bench.transport.given)
    bench.transport.given.clear()
    for message in (b"x", "x", "é"):
        bench.writer.write(message)
    frames = [b"\x82\x01x", b"\x81\x01x", b"\x81\x02\xc3\xa9"]
    assert bench.transport.given == frames


def test_above_the_high_water_mark_a_write_says_what_to_await(bench):
    bench.writer.open = True
    assert bench.writer.write("x" * 8) is None
    assert bench.writer.write("") is bench.drains


def test_a_writer_is_closed_at_first(bench):
    assert bench.writer.write("x") is None
    assert bench.transport.given == []


def test_half_a_surrogate_pair_has_no_frame(bench):
    bench.writer.open = True
    with pytest.raises(ValueError, match="surrogates not allowed"):
        bench.writer.write("\ud800")
    bench.writer.write("x")
    assert bench.transport.given == [b"\x81\x01x"]


@pytest.mark.parametrize("side", FRAMES)
def test_what_a_socket_has_is_received(side):
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        assert side.receive_now(near.fileno()) is None
        far.send(b"\0one")
        assert side.receive_now(near.fileno()) == b"\0one"
        far.setblocking(False)
        data = os.urandom(100_000)
        assert far.send(data) == len(data)
        pieces = [side.receive_now(near.fileno()) for _ in range(2)]
        assert b"".join(pieces) == data
        assert len(pieces[0]) == 65536
        far.close()
        assert side.receive_now(near.fileno()) == b""
    assert side.receive_now(-1) == b""  # an error is the transport's to tell
