"""Lines on their way to a file descriptor that may be slow, full or gone.

The event loop puts a line into a bounded queue and goes on; a thread writes. A pipe
that nobody reads blocks that thread and nothing else.

Invariants:

* `put` never waits and never raises. A line that finds the queue full is dropped and
  counted, and so is one that could not be written: what was put is written, waiting, or
  in `dropped`.
* Lines are written whole and in order. After a loss, the next line that is written says
  how many are missing.
* `close` returns within its patience, whatever the descriptor does; the thread is a
  daemon, so the process ends too.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

__all__ = ["Sink"]

LIMIT = 10_000  # lines that wait; a reconnect of 3,000 clients within a moment
PIECE = 64 * 1024  # bytes of one write


class Sink:
    """Writes lines to a file descriptor, from a thread of its own.

    Args:
        descriptor: Where to; it is not closed.
        note: Returns the line that says how many lines are missing.
        limit: Lines that may wait.
    """

    def __init__(
        self, descriptor: int, note: Callable[[int], str], limit: int = LIMIT
    ) -> None:
        self._descriptor = descriptor
        self._note = note
        self._limit = limit
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._refused = 0  # by `put`, on any thread, under the lock
        self._lock = threading.Lock()
        self._lost = 0  # by the thread
        self._noted = 0  # of both, what has been said
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that nobody will read."""
        return self._refused + self._lost

    def put(self, line: str) -> None:
        """Queue one line, without its newline."""
        if self._queue.qsize() >= self._limit:
            with self._lock:
                self._refused += 1
        else:
            self._queue.put(line)

    def close(self, patience: float) -> None:
        """Write what waits, for at most *patience* seconds."""
        self._queue.put(None)
        self._thread.join(patience)

    # On the thread.

    def _run(self) -> None:
        ended = False
        while not ended:
            lines: list[str] = []
            size = 0
            item = self._queue.get()
            try:
                while item is not None and size < PIECE:
                    lines.append(item)
                    size += len(item)
                    item = self._queue.get_nowait()
            except Empty:
                pass
            else:
                if item is None:
                    ended = True
                else:
                    lines.append(item)
            if lines:
                self._write(lines)

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
                # Somebody made it non-blocking; this thread may wait all the same.
                select.select([], [self._descriptor], [])
