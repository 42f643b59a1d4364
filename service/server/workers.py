"""Several processes that serve one port: a parent that binds, and its workers.

The parent binds the listeners and hands their descriptors to each worker, which is
this same program (``steadwire serve`` with a hidden option). All accept from the same
queue of the kernel: a connection that waits in it is not lost when a worker ends, and
the port is open for as long as the parent lives. Hypercorn's own worker mode does not
restart a worker that was killed, ends the others with it, and knows nothing of a drain.

The first worker is started alone: it makes or migrates the store, and a mistake that
keeps it from starting is reported once. A worker that ends later is started again: at
once if it ended by itself (SIGTERM to a worker replaces it), else after `FIRST_PAUSE`,
twice that after each failure that follows within `CALM`, at most `LONGEST_PAUSE`. One
for which the system makes no process has failed so, too.

SIGTERM or SIGINT: the parent closes its listeners and sends SIGTERM to each worker,
which drains and ends as it does alone; further signals are passed on as `AGAIN`, so the
second one ends the drain time and the third one all workers at once. Who is left
`GRACE` after the time that a worker may take is killed. Workers ignore SIGINT, which a
terminal sends to them, too, and each SIGTERM after the first: process managers may send
it to the whole group.

A worker whose parent has died ends as with SIGTERM: it finds the end of a pipe that
only the parent can write to.

Interleavings, each a test in tests/server/test_workers.py: a signal before the first
worker is ready; one while a worker is being started again; a worker that is killed; one
that is terminated; one that cannot start; one for which there is no process; the parent
is killed; a signal that all processes get.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence

import structlog

from service.server.process import AGAIN, address_of, bind_all
from service.settings import Settings

__all__ = ["Inherited", "supervise"]

FIRST_PAUSE = 0.2  # s
LONGEST_PAUSE = 5.0  # s
CALM = 10.0  # s
GRACE = 5.0  # s

_READY = b"r"

_log = structlog.get_logger("steadwire.workers")


class Inherited:
    """What a worker has from its parent: descriptors.

    Args:
        text: The value of the hidden option, from `Inherited.text`.

    Attributes:
        listeners: The parent's.
    """

    def __init__(self, text: str) -> None:
        alive, ready, *listeners = map(int, text.split(","))
        self._alive = alive
        self._ready = ready
        self.listeners = [socket.socket(fileno=number) for number in listeners]

    @staticmethod
    def text(alive: int, ready: int, listeners: Sequence[socket.socket]) -> str:
        """Return the value of the hidden option."""
        numbers = [alive, ready, *(listener.fileno() for listener in listeners)]
        return ",".join(map(str, numbers))

    def watch_parent(self) -> None:
        """End this process as with SIGTERM when the parent has died."""
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(self._alive)
            os.kill(os.getpid(), signal.SIGTERM)

        loop.add_reader(self._alive, ended)

    def tell_ready(self, addresses: list[str]) -> None:
        """Tell the parent that this worker serves."""
        with contextlib.suppress(OSError):  # it has died, and this one will end
            os.write(self._ready, _READY)
        os.close(self._ready)


async def supervise(
    settings: Settings,
    command: Callable[[str], Sequence[str]],
    environment: Mapping[str, str],
    *,
    ready: Callable[[list[str]], None],
) -> int:
    """Serve with workers until SIGTERM or SIGINT; return the exit status.

    Args:
        settings: For the listeners, and the time that a shutdown may take.
        command: Returns the command line of a worker, given its hidden option's value.
        environment: Of the workers.
        ready: Called with the addresses when all workers serve.

    Raises:
        StartupError: A port cannot be bound.
    """
    parent = _Parent(settings, command, environment)
    try:
        return await parent.run(ready)
    finally:
        parent.close()


class _Parent:
    def __init__(
        self,
        settings: Settings,
        command: Callable[[str], Sequence[str]],
        environment: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._command = command
        self._environment = environment
        self._listeners = bind_all(settings)
        self._alive, self._end = os.pipe()
        self._stopping = asyncio.Event()
        self._processes: set[asyncio.subprocess.Process] = set()
        self._status = 0

    def close(self) -> None:
        self._close_listeners()
        for descriptor in (self._alive, self._end):
            os.close(descriptor)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    async def run(self, ready: Callable[[list[str]], None]) -> int:
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self._signalled)
        addresses = [address_of(listener) for listener in self._listeners]
        count = self._settings.server.workers
        serving = [loop.create_future() for _ in range(count)]
        slots = []
        for number, served in enumerate(serving):
            slots.append(asyncio.create_task(self._keep(number, served)))
            if not number:
                await served
        if all(await asyncio.gather(*serving)) and not self._stopping.is_set():
            ready(addresses)
        await asyncio.gather(*slots)
        return self._status

    async def _keep(self, number: int, served: asyncio.Future[bool]) -> None:
        """Keep one worker running.

        Args:
            number: Of the worker.
            served: Set when it serves for the first time, or will not.
        """
        loop = asyncio.get_running_loop()
        failures = 0
        while not self._stopping.is_set():
            began = loop.time()
            pid, status = None, 1
            try:
                process, is_ready = await self._start()
            except OSError as error:  # too many processes or files, too little memory
                why = os.strerror(error.errno or 0)
                _log.error("a worker cannot be started", worker=number, reason=why)
            else:
                pid = process.pid
                if await is_ready and not served.done():
                    served.set_result(True)
                status = await process.wait()
                self._processes.discard(process)
            if self._stopping.is_set():
                if status not in (0, -signal.SIGTERM, -AGAIN):
                    self._note(status)
                break
            if not served.done():
                self._note(status or 1)
                self._stop()
                break
            pause = 0.0
            if status:
                failures = failures + 1 if loop.time() - began < CALM else 0
                pause = min(FIRST_PAUSE * 2 ** min(failures, 10), LONGEST_PAUSE)
            (_log.error if status else _log.info)(
                "a worker has ended, and is started again",
                worker=number,
                pid=pid,
                status=status,
                seconds=pause,
            )
            if pause:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause)
        if not served.done():
            served.set_result(False)

    async def _start(self) -> tuple[asyncio.subprocess.Process, asyncio.Task[bool]]:
        """Start a worker; also return what tells whether it serves.

        Raises:
            OSError: The system makes no process or pipe for it.
        """
        loop = asyncio.get_running_loop()
        theirs, ours = socket.socketpair()
        ours.setblocking(False)
        text = Inherited.text(self._alive, theirs.fileno(), self._listeners)
        numbers = tuple(map(int, text.split(",")))
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(text),
                pass_fds=numbers,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._processes.add(process)
        if self._stopping.is_set():
            self._pass_on(process)

        async def wait() -> bool:
            with contextlib.closing(ours):
                return await loop.sock_recv(ours, 1) == _READY

        return process, asyncio.create_task(wait())

    def _note(self, status: int) -> None:
        self._status = self._status or (status if status > 0 else 128 - status)

    def _signalled(self) -> None:
        if self._stopping.is_set():
            for process in self._processes:
                self._pass_on(process, AGAIN)
        else:
            self._stop()

    def _stop(self) -> None:
        """End the workers, and wait for them a bounded time."""
        self._stopping.set()
        self._close_listeners()
        for process in self._processes:
            self._pass_on(process)
        server = self._settings.server
        longest = self._settings.drain_time + server.shutdown_timeout + GRACE
        asyncio.get_running_loop().call_later(longest, self._kill)

    @staticmethod
    def _pass_on(
        process: asyncio.subprocess.Process, number: int = signal.SIGTERM
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    def _kill(self) -> None:
        for process in self._processes:
            _log.error("a worker does not end, and is killed", pid=process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
