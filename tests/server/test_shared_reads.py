"""Sockets that are read together: each in its order, whatever its readers do."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from service.server.shared_reads import SharedReads

MANY = 260  # sockets; a call reads 256


class Reader:
    """One end of a connection, and what it was given."""

    def __init__(self, reads: SharedReads, near: socket.socket) -> None:
        near.setblocking(False)
        self.near = near
        self.descriptor = near.fileno()
        self.reads = reads
        self.given: list[bytes] = []
        self.ends = 0
        self.then: Callable[[], object] = lambda: None
        self.target: Any = self  # which takes what is read

    def data_received(self, data: bytes) -> None:
        self.given.append(data)
        self.then()

    def ended(self) -> None:
        self.ends += 1
        self.remove()

    def add(self) -> None:
        self.reads.add(self.descriptor, self)

    def remove(self) -> None:
        self.reads.remove(self.descriptor)


class Bench:
    def __init__(self) -> None:
        self.reads = SharedReads(asyncio.get_running_loop())
        self.readers: list[Reader] = []
        self.sockets: list[socket.socket] = []

    def pair(self) -> tuple[Reader, socket.socket]:
        """Return a reader that is added, and its peer."""
        near, far = socket.socketpair()
        reader = Reader(self.reads, near)
        reader.add()
        self.readers.append(reader)
        self.sockets += [near, far]
        return reader, far


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    for reader in made.readers:
        reader.remove()
    made.reads.close()
    made.reads.close()  # harmless
    for each in made.sockets:
        each.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0)


async def turns() -> None:
    """Let the event loop look at all its descriptors."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        for _ in range(3):
            far.send(b"x")
            await asyncio.get_running_loop().sock_recv(near, 1)


async def test_each_is_given_its_own_bytes_in_order(bench: Bench) -> None:
    pairs = [bench.pair() for _ in range(10)]
    for number in range(50):
        for index, (_, far) in enumerate(pairs):
            far.send(b"%d.%d " % (index, number))
        await asyncio.sleep(0)
    wanted = [b"".join(b"%d.%d " % (i, n) for n in range(50)) for i in range(10)]
    await until(lambda: [b"".join(one.given) for one, _ in pairs] == wanted)


async def test_who_is_taken_out_by_one_before_it_is_not_read(bench: Bench) -> None:
    (one, its), (other, others) = bench.pair(), bench.pair()
    one.then, other.then = other.remove, one.remove  # whoever is the first
    its.send(b"1")
    others.send(b"2")
    await until(lambda: bool(one.given or other.given))
    await turns()
    assert sorted([one.given, other.given]) in ([[], [b"1"]], [[], [b"2"]])
    for reader in (one, other):
        reader.then = lambda: None
        reader.add()
    await until(lambda: bool(one.given and other.given))
    assert (one.given, other.given) == ([b"1"], [b"2"])


async def test_who_takes_itself_out_is_read_again_when_it_is_added(
    bench: Bench,
) -> None:
    reader, far = bench.pair()
    reader.then = reader.remove
    far.send(b"1")
    await until(lambda: reader.given == [b"1"])
    far.send(b"2")
    await turns()
    assert reader.given == [b"1"]
    reader.add()
    reader.add()  # harmless
    await until(lambda: reader.given == [b"1", b"2"])


async def test_who_is_added_again_in_its_own_call_goes_on(bench: Bench) -> None:
    reader, far = bench.pair()

    def again() -> None:
        reader.remove()
        reader.add()

    reader.then = again
    for number in range(3):
        far.send(b"%d" % number)
        await until(lambda count=number + 1: len(reader.given) == count)
    assert reader.given == [b"0", b"1", b"2"]


async def test_one_that_fails_is_told_of_and_does_not_disturb_others(
    bench: Bench,
) -> None:
    errors: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    (one, its), (other, others) = bench.pair(), bench.pair()

    def fail() -> None:
        raise RuntimeError("a bug")

    one.then = fail
    its.send(b"1")
    others.send(b"2")
    await until(lambda: bool(one.given and other.given))
    await until(lambda: len(errors) == 1)
    assert str(errors[0]) == "a bug"
    assert other.given == [b"2"]


async def test_an_end_comes_behind_the_data_before_it(bench: Bench) -> None:
    reader, far = bench.pair()
    reader.then = lambda: reader.given.append(b"%d ends" % reader.ends)
    far.send(b"last")
    far.close()
    await until(lambda: reader.ends == 1)
    await turns()
    assert (reader.given, reader.ends) == ([b"last", b"0 ends"], 1)


async def test_a_reset_is_left_to_the_transport(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    with near:
        reader = Reader(bench.reads, near)
        reader.add()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        await until(lambda: reader.ends == 1)
        assert reader.given == []
        with pytest.raises(ConnectionResetError):  # nobody has taken the error away
            near.recv(1)


async def test_a_call_reads_each_once_and_256_at_most(bench: Bench) -> None:
    pairs = [bench.pair() for _ in range(MANY)]
    counts: list[list[int]] = []

    def count() -> None:
        counts.append([len(reader.given) for reader in bench.readers])

    def begin() -> None:
        for reader in bench.readers:
            reader.then = lambda: None
        asyncio.get_running_loop().call_soon(count)

    for reader, far in pairs:
        reader.then = begin
        far.send(bytes(100_000))  # more than is read of one in a call
    await until(lambda: bool(counts))
    assert sorted(counts[0]) == [0] * (MANY - 256) + [1] * 256
    await until(lambda: all(len(b"".join(r.given)) == 100_000 for r in bench.readers))


async def test_a_descriptor_that_was_closed_is_taken_out_all_the_same(
    bench: Bench,
) -> None:
    near, far = socket.socketpair()
    reader = Reader(bench.reads, near)
    reader.add()
    descriptor = near.fileno()
    near.close()
    bench.reads.remove(descriptor)
    far.close()
    other, peer = bench.pair()  # has its number
    assert other.near.fileno() == descriptor
    peer.send(b"1")
    await until(lambda: other.given == [b"1"])
    assert reader.given == []


async def test_one_that_the_kernel_does_not_let_in_is_left_to_the_transport(
    bench: Bench,
) -> None:
    near, far = socket.socketpair()
    reader = Reader(bench.reads, near)
    near.close()
    reader.add()
    assert reader.ends == 1
    far.close()
    other, peer = bench.pair()  # has its number
    assert other.descriptor == reader.descriptor
    peer.send(b"1")
    await until(lambda: other.given == [b"1"])
