"""The socket of an accepted connection: its options, and the addresses of both ends."""

from __future__ import annotations

import socket
import sys

from hypercorn.utils import parse_socket_addr

from service.settings import ServerSettings

__all__ = ["prepare"]

_Address = tuple[str, int] | None


def prepare(raw: socket.socket, settings: ServerSettings) -> tuple[_Address, _Address]:
    """Set the options of *raw*; return the addresses of the peer and of ours.

    What uvloop returns for a socket makes one for each of its calls; here one does all.

    Raises:
        OSError: The peer has reset the connection.
    """
    family = raw.family
    found = socket.socket(family, socket.SOCK_STREAM, fileno=raw.fileno())
    try:
        if family in (socket.AF_INET, socket.AF_INET6):
            _set_options(found, settings)
        return (
            parse_socket_addr(family, found.getpeername()),
            parse_socket_addr(family, found.getsockname()),
        )
    finally:
        found.detach()  # it is the transport's


def _set_options(raw: socket.socket, settings: ServerSettings) -> None:
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # By default the kernel takes some 3.8 MB before a write blocks.
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer)
    if sys.platform == "linux":
        # This also ends a connection whose peer keeps its window at zero.
        milliseconds = max(1, round(settings.abort_timeout * 1000))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
