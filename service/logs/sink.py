"""Log sink: a bounded queue and a thread that writes lines to a file descriptor.

The event loop puts a line into the queue and goes on; the thread writes. A pipe that
nobody reads blocks the thread and nothing else.

Invariants:

* `put` never waits and never raises. A line that finds the queue full is dropped and
  counted, and so is one that could not be written: every line put is written, waiting,
  or counted in `dropped`.
* Lines are written whole and in order. After a loss, the next written line says how
  many are missing.
* `close` returns within its time, whatever the descriptor does; the thread is a daemon,
  so the process ends too.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

__all__ = ["Sink"]

LIMIT = 10_000  # lines that wait: 3,000 clients that reconnect at once log as many
PIECE = 64 * 1024  # bytes of one write


class Sink:
    """Writes lines to a file descriptor, on its own thread.

    Args:
        descriptor: The file descriptor; it is not closed.
        note: Returns the line that says how many lines are missing.
        limit: Most lines that wait.
    """

    def __init__(
        self, descriptor: int, note: Callable[[int], str], limit: int = LIMIT
    ) -> None:
        self._descriptor = descriptor
        self._note = note
        self._limit = limit
        self._queue: SimpleQueue[str | threading.Event | None] = SimpleQueue()
        self._refused = 0  # lines, by `put` on any thread, under the lock
        self._lock = threading.Lock()
        self._lost = 0  # lines, by the thread
        self._noted = 0  # refused and lost lines that a note has reported
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines dropped so far."""
        return self._refused + self._lost

    def put(self, line: str) -> None:
        """Queue one line, without its newline."""
        if self._queue.qsize() >= self._limit:
            with self._lock:
                self._refused += 1
        else:
            self._queue.put(line)

    def flush(self, patience: float) -> None:
        """Wait until what was put so far is written, for at most *patience* seconds."""
        written = threading.Event()
        self._queue.put(written)
        written.wait(patience)

    def close(self, patience: float) -> None:
        """Write the waiting lines, for at most *patience* seconds."""
        self._queue.put(None)
        self._thread.join(patience)

    # On the thread:

    def _run(self) -> None:
        ended = False
        while not ended:
            lines: list[str] = []
            size = 0
            written: threading.Event | None = None
            item = self._queue.get()
            try:
                while isinstance(item, str) and size < PIECE:
                    lines.append(item)
                    size += len(item)
                    item = self._queue.get_nowait()
            except Empty:
                pass
            else:
                if item is None:
                    ended = True
                elif isinstance(item, str):
                    lines.append(item)
                else:
                    written = item
            if lines:
                self._write(lines)
            if written is not None:
                written.set()

    def _write(self, lines: list[str]) -> None:
        missing = self.dropped - self._noted
        if missing:
            lines = [self._note(missing), *lines]
        text = "\n".join(lines) + "\n"
        try:
            self._write_all(text.encode(errors="backslashreplace"))
        except OSError:
            self._lost += len(lines) - bool(missing)
        else:
            self._noted += missing

    def _write_all(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                # Another process made it non-blocking; this thread may wait.
                select.select([], [self._descriptor], [])
