"""The life of the process: bind, start, serve, drain, end in time.

Hypercorn's own command exits with 0 after a failed start-up, closes clients with 1011
at a shutdown, and can be kept alive by one of them. So `serve` here wraps Hypercorn's
`serve` function instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    MutableMapping,
    Sequence,
)
from typing import Any, NoReturn, Protocol

import hypercorn.asyncio
import structlog
from hypercorn.config import Config, Sockets
from hypercorn.logging import Logger
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError

from service.core.errors import StartupError, SteadwireError, describe
from service.core.refusal_log import RefusalLog
from service.server.install import install
from service.server.shared_reads import SharedReads
from service.server.tracker import ConnectionTracker
from service.settings import Settings

__all__ = ["AGAIN", "Application", "address_of", "bind_all", "run", "serve"]

AGAIN = signal.SIGUSR1
"""From the parent of workers: a further signal has come to it. Those that it got may
have come to the workers, too: some process managers send them to a whole group."""

_ADMIN = "steadwire.admin"
"""Key in the scope: True for a connection to the API's own listener."""

_ANY_ADDRESS = ("0.0.0.0", "::")

_BACKLOG = 16384  # connections; the kernel cuts it to net.core.somaxconn
_ACCEPTS = 32  # connections that asyncio's loop accepts before it serves the others
# Objects made and not freed since the last collection; then how many collections of one
# generation come before one of the next. Ended connections wait for the last.
_COLLECTED = (10_000, 2, 3)

_log = structlog.get_logger("steadwire.server")

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class Application(Protocol):
    """An ASGI application that remembers why it did not start.

    Attributes:
        startup_error: The exception that its lifespan start-up failed with, if any.
        refusals: Counts the connections that were cut off before they had sent a
            request.
    """

    startup_error: BaseException | None
    refusals: RefusalLog

    def __call__(
        self, scope: _Message, receive: _Receive, send: _Send
    ) -> Awaitable[None]:
        """Serve one connection, or the lifespan."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run *main* in a new event loop, uvloop's where it is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop


async def serve(
    app: Application,
    settings: Settings,
    *,
    ready: Callable[[list[str]], None] | None = None,
    inherited: Sequence[socket.socket] = (),
    signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT),
    again: Sequence[int] = (),
    send_away: Callable[[], Awaitable[None]],
    hurry: Callable[[], None],
    drain: Callable[[], Awaitable[None]],
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return.

    With a drain time, the listeners are open while it lasts: the server API is served,
    and the health endpoints say that this process is not ready. A second signal ends
    the drain time. A signal after that ends the process at once with the status 128
    plus its number. When the drain time and ``shutdown_timeout`` are over, the process
    ends with 1 and a line on stderr.

    Args:
        app: The application; its lifespan begins before the first connection and ends
            after the last.
        settings: For the listeners and the time that a shutdown may take.
        ready: Called with the addresses, as ``http://127.0.0.1:8000``, once connections
            are accepted: that of clients, and that of the API if it has its own.
        inherited: Bound listeners, in that order; by default they are bound here.
        signals: They begin the shutdown; of SIGTERM and SIGINT, others are ignored.
        again: The signals that count as the second and the third; those that begin the
            shutdown by default, else these are ignored once it has begun.
        send_away: Sends the clients away over the drain time, if there is one.
        hurry: Ends the drain time.
        drain: Ends the clients' connections and flushes the store. The lifespan's
            shutdown waits for it. It is called before the start has ended when a signal
            comes before that.

    Raises:
        StartupError: The port cannot be bound, or the lifespan start-up failed.
    """
    _raise_descriptor_limit()
    tracker = install(settings, app.refusals)
    # The store's writer thread must get its turn while the event loop is busy: with the
    # default of 5 ms it commits a quarter less.
    sys.setswitchinterval(0.0005)
    _calm_collector()
    listeners = list(inherited) or bind_all(settings)
    config = _configure(settings, listeners)
    addresses = [address_of(listener) for listener in listeners]
    shutdown = _Shutdown(
        tracker,
        listeners,
        settings.drain_time,
        signals,
        again or signals,
        send_away,
        hurry,
        drain,
    )
    admin = listeners[1].getsockname()[:2] if len(listeners) > 1 else None
    lifespan = _Lifespan(app, shutdown.finished, admin)

    async def wait_for_shutdown() -> None:
        # Hypercorn awaits this once the listeners accept, and then closes them.
        for listener in listeners:
            listener.listen(_BACKLOG)  # asyncio has set the backlog to `_ACCEPTS`
        if lifespan.failure is not None:
            return
        shutdown.serving = True
        if ready is not None and not shutdown.requested.is_set():
            ready(addresses)
        await shutdown.requested.wait()
        shutdown.drain()

    shutdown.listen()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(tracker.handle_loop_error)
    if hasattr(select, "epoll"):  # on Linux alone
        tracker.reads = SharedReads(loop)
    try:
        await hypercorn.asyncio.serve(
            lifespan,  # type: ignore[arg-type]  # typed by its own typed dicts
            config,
            shutdown_trigger=wait_for_shutdown,
            mode="asgi",
        )
    except LifespanTimeoutError as error:
        # The start took too long; a shutdown that does ends with the process.
        raise StartupError(str(error)) from error
    except LifespanFailureError:
        if lifespan.failure is None:
            raise
    finally:
        for listener in listeners:
            listener.close()
        if tracker.reads is not None:
            tracker.reads.close()
    if lifespan.failure is not None and not shutdown.requested.is_set():
        raise _startup_error(app.startup_error, lifespan.failure)
    shutdown.result()


class _Lifespan:
    """The application, with its lifespan watched and `_ADMIN` set in its scopes.

    Attributes:
        failure: The text of a failed start-up.
    """

    def __init__(
        self,
        app: Application,
        drained: asyncio.Event,
        admin: tuple[str, int] | None,
    ) -> None:
        self.failure: str | None = None
        self._app = app
        self._drained = drained
        self._admin = admin

    def __call__(
        self, scope: _Message, receive: _Receive, send: _Send
    ) -> Awaitable[None]:
        if scope["type"] == "lifespan":
            return self._run(scope, receive, send)
        scope[_ADMIN] = self._admin is not None and self._is_admin(scope["server"])
        return self._app(scope, receive, send)

    def _is_admin(self, server: tuple[str, int]) -> bool:
        """Return whether a connection came to the listener at this address."""
        if self._admin is None or server[1] != self._admin[1]:
            return False
        # Neither is bound to every address when both have one port.
        return self._admin[0] in (server[0], *_ANY_ADDRESS)

    async def _run(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        started = False

        async def receive_gated() -> _Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                # The store must not close before the drain has flushed it.
                await self._drained.wait()
            return message

        async def send_watched(message: _Message) -> None:
            nonlocal started
            if message["type"] == "lifespan.startup.complete":
                started = True
            elif message["type"] == "lifespan.startup.failed":
                self.failure = message.get("message", "")
            await send(message)

        try:
            await self._app(scope, receive_gated, send_watched)
        except Exception as error:
            if not started and self.failure is None:
                self.failure = f"{type(error).__name__}: {error}"
            raise


class _Shutdown:
    """The shutdown that a signal starts.

    Attributes:
        requested: Set when nobody is to be served any more: by the first signal, or at
            the end of the drain time.
        serving: True once connections are accepted.
        finished: Set when the drain has ended or failed.
    """

    def __init__(
        self,
        tracker: ConnectionTracker,
        listeners: Sequence[socket.socket],
        drain_time: float,
        signals: Sequence[int],
        again: Sequence[int],
        send_away: Callable[[], Awaitable[None]],
        hurry: Callable[[], None],
        drain: Callable[[], Awaitable[None]],
    ) -> None:
        self._signals = signals
        self._repeats = again
        self.requested = asyncio.Event()
        self.finished = asyncio.Event()
        self.serving = False
        self._tracker = tracker
        self._listeners = listeners
        self._drain_time = drain_time
        self._send_away = send_away
        self._hurry = hurry
        self._drain = drain
        self._task: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._deadline: threading.Timer | None = None

    def listen(self) -> None:
        """Begin at a signal."""
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            if number in self._signals:
                self._loop.add_signal_handler(number, self._begin)
            else:
                signal.signal(number, signal.SIG_IGN)
        for each in self._repeats:
            if each not in self._signals:
                signal.signal(each, signal.SIG_IGN)  # until the first has come

    def drain(self) -> None:
        """Drain the application, once Hypercorn has closed the listener."""
        if self._task is not None:
            return
        self._task = asyncio.create_task(self._run())

    def result(self) -> None:
        """Raise the exception that the drain failed with, if any."""
        if self._task is not None and self._task.done():
            self._task.result()

    def _begin(self) -> None:
        loop = self._loop
        for number in self._signals:
            # From here on without the event loop, for it may hang.
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        for number in self._repeats:
            signal.signal(number, self._signalled_again)
        timeout = self._tracker.settings.shutdown_timeout
        if self.serving and self._drain_time:
            self._end_within(self._drain_time + timeout)
            self._leaving = loop.create_task(self._leave())
            return
        self._end_within(timeout)
        self._end()
        if not self.serving:
            self.drain()  # now: the start may wait for something

    def _end_within(self, timeout: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        # A thread, for the event loop may hang. It is not cancelled at the end: the
        # interpreter waits for other threads then, and they may hang too.
        self._deadline = threading.Timer(timeout, _end_late, [timeout])
        self._deadline.daemon = True
        self._deadline.start()

    def _signalled_again(self, number: int, frame: object) -> None:
        if self.requested.is_set():
            _end_at_once(number, frame)
        for each in self._repeats:
            signal.signal(each, _end_at_once)
        self._loop.call_soon_threadsafe(self._shorten)

    def _shorten(self) -> None:
        self._end_within(self._tracker.settings.shutdown_timeout)
        self._hurry()

    async def _leave(self) -> None:
        try:
            await self._send_away()
        finally:
            self._end()

    def _end(self) -> None:
        self._tracker.drain()
        self.requested.set()
        # Half of the time for the peers, the rest for the store and the lifespan.
        timeout = self._tracker.settings.shutdown_timeout
        self._loop.call_later(timeout / 2, self._tracker.abort)

    async def _run(self) -> None:
        try:
            # A few rounds of the loop: a client that is told to reconnect must not
            # reach this process again.
            while self.serving and any(
                listener.fileno() != -1 for listener in self._listeners
            ):
                await asyncio.sleep(0)
            await self._drain()
            # Hypercorn does not know of the WebSockets that go on without a task.
            await self._tracker.emptied()
        finally:
            self.finished.set()


def _end_at_once(number: int, frame: object) -> NoReturn:
    os._exit(128 + (signal.SIGTERM if number == AGAIN else number))


def _end_late(timeout: float) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):
        # A pipe that nobody reads must not block the end of the process.
        if sys.stderr is not None and select.select([], [2], [], 0)[1]:
            line = f"steadwire: shutdown took longer than {timeout:g} s\n"
            os.write(2, line.encode())
    os._exit(1)


class _Log(Logger):
    """Hypercorn's log: structured, without accesses and without error texts."""

    def __init__(self, config: Config) -> None:
        self.access_logger = None
        self.error_logger = None

    async def access(self, *args: Any) -> None:
        """Drop it."""

    async def exception(self, message: str, *args: Any, **kwargs: Any) -> None:
        """Log the place at which the exception being handled was raised."""
        error = sys.exc_info()[1]
        _log.error(message, **(describe(error) if error is not None else {}))

    async def warning(self, message: str, *args: Any, **kwargs: Any) -> None:
        """Drop it: Hypercorn only warns of a failed lifespan, which we report."""


class _Config(Config):
    """Hypercorn's configuration for sockets that listen already."""

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        self._listeners = listeners

    def create_sockets(self) -> Sockets:
        """Return the listeners; Hypercorn closes them."""
        return Sockets([], list(self._listeners), [])


def _configure(settings: Settings, listeners: Sequence[socket.socket]) -> Config:
    server = settings.server
    config = _Config(listeners)
    config.backlog = _ACCEPTS
    config.logger_class = _Log
    config.include_server_header = False
    config.websocket_max_message_size = server.message_size
    config.websocket_ping_interval = None  # the protocol has its own
    # `_Shutdown` aborts the last connections after half of the time and ends the
    # process after all of it, so these two only have to be longer.
    config.graceful_timeout = 2 * server.shutdown_timeout
    config.shutdown_timeout = 2 * server.shutdown_timeout
    # The store may wait for its file, which its own time ends.
    config.startup_timeout += settings.store.open_timeout
    return config


def bind_all(settings: Settings) -> list[socket.socket]:
    """Bind the listener of clients, and that of the API if it has one of its own.

    Raises:
        StartupError: A port cannot be bound.
    """
    server, api = settings.server, settings.api
    listeners = [_bind(server.host, server.port)]
    if api.port is not None:
        try:
            listeners.append(_bind(api.host or server.host, api.port))
        except BaseException:
            listeners[0].close()
            raise
    return listeners


def _bind(host: str, port: int) -> socket.socket:
    where = f"port {port} on {host}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
    except OSError as error:
        raise StartupError(f"cannot listen on {where}: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    listener.setblocking(False)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # At once: two sockets can be bound to one port until one of them listens.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise StartupError(f"{where} is in use") from error
        raise StartupError(f"cannot listen on {where}: {error.strerror}") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the address of a listener, as ``http://127.0.0.1:8000``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        # macOS reports "no limit" and refuses to set it.
        _log.info("descriptor limit stays", limit=soft)


def _calm_collector() -> None:
    """Let the garbage collector leave alone what stays, and come more seldom.

    Modules and settings are never freed, and messages in flight are freed without it:
    a collection for each 700 of them was 10 % of the CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTED)


def _startup_error(error: BaseException | None, text: str) -> SteadwireError:
    if isinstance(error, SteadwireError):
        return error
    if error is not None:
        text = f"{type(error).__name__}: {error}"
    # Falcon reports a whole traceback, whose last line names the exception.
    lines = text.strip().splitlines() or ["the application gave no reason"]
    failure = StartupError(f"start-up failed: {lines[-1]}")
    failure.__cause__ = error
    return failure
