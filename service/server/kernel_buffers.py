"""Bytes of a TCP socket that wait in the kernel, on their way in or out."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios

__all__ = ["undelivered", "unread"]


def unread(raw: socket.socket) -> bool:
    """Return whether there are bytes of the peer that were not read."""
    return bool(_bytes(raw, termios.FIONREAD))


def undelivered(raw: socket.socket) -> int:
    """Return the bytes that the peer's kernel has not acknowledged; 0 if unknown."""
    return _bytes(raw, termios.TIOCOUTQ) if sys.platform == "linux" else 0  # SIOCOUTQ


def _bytes(raw: socket.socket, query: int) -> int:
    try:
        answer = fcntl.ioctl(raw.fileno(), query, bytes(4))
    except (OSError, ValueError):
        return 0  # the peer reset it; a closed socket has the descriptor -1
    count: int = struct.unpack("i", answer)[0]
    return count
