"""Lines on their way out: in order, whole, counted when lost, never waited for."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator

import pytest

from service.logs.sink import Sink

PATIENCE = 10.0  # s


def note(count: int) -> str:
    return f"missing {count}"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    for descriptor in (reader, writer):
        with contextlib.suppress(OSError):  # the test has closed it
            os.close(descriptor)


def read_all(descriptor: int, into: list[bytes]) -> threading.Thread:
    def run() -> None:
        while data := os.read(descriptor, 65536):
            into.append(data)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_lines_come_out_in_order(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    read: list[bytes] = []
    thread = read_all(reader, read)
    sink = Sink(writer, note)
    lines = [f"{number} é" for number in range(5000)]
    for line in lines:
        sink.put(line)
    sink.close(PATIENCE)
    os.close(writer)
    thread.join(PATIENCE)
    assert b"".join(read).decode() == "".join(f"{line}\n" for line in lines)
    assert sink.dropped == 0


def test_a_flush_waits_until_all_lines_are_written(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = Sink(writer, note)
    for number in range(100):
        sink.put(f"line {number}")
        sink.flush(PATIENCE)
        assert os.read(reader, 65536) == f"line {number}\n".encode()
    sink.flush(PATIENCE)
    sink.put("x" * 8192)  # more than the pipe holds, and nobody reads
    sink.flush(0.0)
    sink.close(0.0)
    assert len(os.read(reader, 65536)) == 4096


def test_a_pipe_that_nobody_reads_costs_lines_and_no_time(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    sink = Sink(writer, note, limit=100)
    line = "x" * 999
    for _ in range(500):
        sink.put(line)
    # 4 KiB are in the pipe, 64 KiB at most with the thread, 100 lines wait.
    dropped = sink.dropped
    assert 500 - 100 - 70 <= dropped <= 400
    began = time.monotonic()
    sink.close(0.05)
    assert time.monotonic() - began < PATIENCE
    read: list[bytes] = []
    thread = read_all(reader, read)
    # Another sink's end does not matter: what waited comes out, then what is missing.
    deadline = time.monotonic() + PATIENCE
    while b"".join(read).count(b"\n") < 500 - dropped and time.monotonic() < deadline:
        time.sleep(0.001)
    os.close(writer)
    thread.join(PATIENCE)
    got = b"".join(read).decode().splitlines()
    assert [each for each in got if each == line] == [line] * (500 - dropped)


def test_what_is_missing_is_said_when_there_is_room_again(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    sink = Sink(writer, note, limit=10)
    for _ in range(50):
        sink.put("y" * 500)
    dropped = sink.dropped
    assert dropped >= 50 - 10 - 50 + 1
    read: list[bytes] = []
    thread = read_all(reader, read)
    sink.close(PATIENCE)
    os.close(writer)
    thread.join(PATIENCE)
    got = b"".join(read).decode().splitlines()
    notes = [each for each in got if each.startswith("missing")]
    assert sum(int(each.split()[1]) for each in notes) == dropped == sink.dropped
    assert len(got) - len(notes) == 50 - dropped


def test_a_closed_pipe_costs_lines_and_nothing_else(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    sink = Sink(writer, note)
    for _ in range(20):
        sink.put("z")
    sink.close(PATIENCE)
    assert sink.dropped == 20


def test_a_full_disk_costs_lines_and_they_are_said_later() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        sink = Sink(full.fileno(), note)
        for _ in range(20):
            sink.put("z")
        sink.close(PATIENCE)
    assert sink.dropped == 20


def test_a_descriptor_that_does_not_block_is_waited_for(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    sink = Sink(writer, note)
    for _ in range(100):
        sink.put("w" * 500)
    read: list[bytes] = []
    thread = read_all(reader, read)
    sink.close(PATIENCE)
    os.close(writer)
    thread.join(PATIENCE)
    assert b"".join(read) == (b"w" * 500 + b"\n") * 100
    assert sink.dropped == 0


def test_threads_lose_no_count(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = Sink(writer, note, limit=1)
    os.write(writer, b"x" * 4096)  # full
    threads = [
        threading.Thread(target=lambda: [sink.put("v") for _ in range(1000)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert 8000 - 1 - 1 - 8 <= sink.dropped < 8000
    # Its thread must not find the descriptor again when it is another test's.
    os.close(reader)
    sink.close(PATIENCE)
