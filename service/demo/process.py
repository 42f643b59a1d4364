"""The simulated agent as a child process, which starts with the first connection to it.

The parent binds the agent's listener and watches it; the child inherits it. So the
address is known from the start, a server that nobody asks has no second process, and
an agent that was killed starts again when it is asked again: until then connections
wait in the listener.

At most one child runs. Its end of the pipe on its standard input tells it when the
parent has ended, however that ended.

Who watches, step by step:

* *idle*: the parent watches the listener. The first connection makes it stop watching
  and spawn.
* *running*: nobody but the child accepts. When the child has ended, the parent watches
  again. A connection that came in between makes the listener readable at once.
* *failing*: a child that ends with an error is not started again before `_RETRY`
  seconds are over; connections wait meanwhile.
* *closed*: `close` stops watching before it kills, so that no child starts after it.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import structlog

from service.core.ports import Clock, Timer

__all__ = ["AgentProcess"]

_RETRY = 5.0  # seconds

log = structlog.get_logger("steadwire")


class AgentProcess:
    """A simulated agent on a free port of this machine.

    Args:
        clock: Of the pause after a child that failed.

    Attributes:
        url: Where it is.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listener = socket.socket()
        self._listener.setblocking(False)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._timer: Timer | None = None
        self._closed = False
        self._watch()

    @property
    def pid(self) -> int | None:
        """The child's process id, None while none runs."""
        return None if self._process is None else self._process.pid

    def kill(self) -> bool:
        """Kill the child with SIGKILL; return whether one ran."""
        if self._process is None:
            return False
        self._process.kill()
        return True

    async def close(self) -> None:
        """Kill the child, and give the port back."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._unwatch()
        if self._task is not None:
            # Spawning is not cut off: the child would be nobody's.
            self.kill()
            await self._task
        self._listener.close()

    def _watch(self) -> None:
        self._timer = None
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._asked)

    def _unwatch(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener.fileno())

    def _asked(self) -> None:
        self._unwatch()
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        failed = True
        descriptor = self._listener.fileno()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "service", "demo-agent", "--inherited", str(descriptor)),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=[descriptor],
            )
        except OSError as error:
            log.error("the simulated agent cannot be started", reason=str(error))
        else:
            self._process = process
            if self._closed:
                process.kill()
            # A signal is a negative status; its own errors are on standard error.
            failed = await process.wait() > 0
            self._process = None
        self._task = None
        if self._closed:
            return
        if failed:
            self._timer = self._clock.call_at(self._clock.now() + _RETRY, self._watch)
        else:
            self._watch()
