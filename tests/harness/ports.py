"""Ports of the loopback for servers that are told theirs, or begin on it again.

They are below those that the kernel gives to clients, and to servers that ask for any
(``net.ipv4.ip_local_port_range``): one of these may be somebody else's in the moment
between the end of a server and its next start. Each process of pytest-xdist has a range
of its own.
"""

from __future__ import annotations

import itertools
import os
import socket

__all__ = ["free_port"]

_FIRST, _EACH, _PROCESSES = 20_000, 1_500, 8

# Another run of the tests on this machine begins elsewhere.
_numbers = itertools.count(os.getpid())


def free_port() -> int:
    """Return a port of the loopback that nobody listens on, and no other call returns.

    Raises:
        OSError: None is free.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _PROCESSES
    for number in itertools.islice(_numbers, _EACH):
        port = _FIRST + process * _EACH + number % _EACH
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue  # somebody listens there
    raise OSError("no port is free")
