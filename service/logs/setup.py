"""Log setup of the process: structlog, the standard library's logging, and the sink.

The log belongs to the process. `steadwire serve` and the application of a stock server
set it up; an application mounted in another leaves the log to that one.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import sys
import threading
from typing import Any

import structlog

from service.core.errors import describe
from service.logs.formatter import LineFormatter
from service.logs.sink import Sink
from service.settings import LogSettings

__all__ = ["configure", "dropped", "flush"]

PATIENCE = 1.0  # s, the longest wait for the last lines when the process ends

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

_sink: Sink | None = None
_log = structlog.get_logger("steadwire")


def configure(settings: LogSettings, descriptor: int | None = None) -> None:
    """Write all logs of this process to *descriptor*, ours and those of libraries.

    Call it once, when the settings are known and before anything is opened. No log call
    after it can wait for the descriptor or fail because of it.

    Args:
        settings: The section ``log``.
        descriptor: A file descriptor; None is stderr, if the process has one.
    """
    global _sink
    if descriptor is None:
        descriptor = _stderr()
    console = settings.format == "console"
    if settings.format == "auto":
        console = sys.stderr is not None and sys.stderr.isatty()
    key = settings.hash_key.encode() or secrets.token_bytes(32)
    lines = LineFormatter(settings, key[:64], console=console)
    sink = _sink = Sink(descriptor, lines.missing)
    atexit.register(sink.close, PATIENCE)
    level = _LEVELS[settings.level]
    structlog.configure(
        processors=[lines],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: _Logger(sink),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Library()], force=True)
    logging.captureWarnings(True)
    sys.unraisablehook = lambda what: _failed("ignored", what.exc_value)
    threading.excepthook = lambda what: _failed("of a thread", what.exc_value)


def dropped() -> int:
    """Return the number of dropped lines of this process's log."""
    return 0 if _sink is None else _sink.dropped


def flush() -> None:
    """Wait until the lines so far are written, for at most `PATIENCE`.

    For a process that may be frozen now, and never thawed.
    """
    if _sink is not None:
        _sink.flush(PATIENCE)


def _stderr() -> int:
    """Return the descriptor of stderr, or one of /dev/null.

    A process that was started without stderr gives its number to the next file that it
    opens, which would be the store.
    """
    while (nothing := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # the number stays taken
    if sys.stderr is None:
        return nothing
    os.close(nothing)
    return 2


class _Logger:
    """The logger of structlog: puts formatted lines into the sink."""

    __slots__ = ("critical", "debug", "error", "exception", "info", "warning")

    def __init__(self, sink: Sink) -> None:
        self.debug = self.info = self.warning = sink.put
        self.error = self.critical = self.exception = sink.put


class _Library(logging.Handler):
    """Handler for the logs of libraries: logger, place and type of the error.

    Their texts are left out, since they may quote what a client sent.
    """

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        fields: dict[str, Any] = {} if error is None else dict(describe(error))
        if record.name == "py.warnings":
            fields["text"] = record.getMessage()  # it speaks of code, not of data
        write = _log.error if record.levelno >= logging.ERROR else _log.warning
        write(
            "a library logged",
            logger=record.name,
            place=f"{record.module}:{record.lineno}",
            **fields,
        )


def _failed(where: str, error: BaseException | None) -> None:
    fields = {} if error is None else describe(error)
    _log.error(f"an exception {where}", **fields)
