"""All examinations of ``steadwire doctor``, and those of the process itself.

They change nothing. Each gives findings: a part is as it should be, is worth a note,
or would keep the service from starting or working, and then with a remedy.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import platform
import socket
from collections.abc import Iterator, Mapping
from importlib.metadata import version

import _speedups
from service.cli.doctor.agents import examine_agents
from service.cli.doctor.finding import NOTE, OK, PROBLEM, Finding
from service.cli.doctor.hooks import examine_hooks
from service.cli.doctor.keys import examine_keys
from service.cli.doctor.permissions import examine_permissions
from service.cli.doctor.store import examine_store
from service.core.errors import SettingsError
from service.settings import Settings, load, service_link_collisions

__all__ = ["examine"]

_ANSWER = 2.0  # s that a server has to say that it is live


def examine(environ: Mapping[str, str], port: int | None = None) -> Iterator[Finding]:
    """Examine everything, or without readable settings all that does not need them.

    Args:
        environ: The environment.
        port: Takes the place of ``server.port``, as of ``steadwire serve``.
    """
    try:
        settings = load(environ, {} if port is None else {"server": {"port": port}})
    except SettingsError as error:
        for mistake in error.mistakes:
            yield Finding(
                PROBLEM,
                "settings",
                " ".join(mistake.split()),
                "correct it in the settings file or the environment (docs/running.md)",
            )
    else:
        yield Finding(OK, "settings", f"environment {settings.environment!r}")
        for text, remedy in service_link_collisions(environ):
            yield Finding(NOTE, "settings", text, remedy)
        if settings.exposed:
            yield Finding(
                NOTE,
                "settings",
                f"development's limits and rights hold on {settings.exposed}, which "
                "others can reach",
                'set environment = "production", or server.host to 127.0.0.1',
            )
        yield from examine_keys(settings)
        yield from examine_hooks(settings)
        yield from examine_agents(settings)
        running = _answers(settings.server.host, settings.server.port)
        yield examine_store(settings, running=running)
        yield from examine_permissions(environ, settings)
        yield from _ports(settings, running=running)
    yield _hypercorn()
    yield _compiled()


def _answers(host: str, port: int) -> bool:
    """Tell whether a server of ours listens there: it says that it is live."""
    if port == 0:
        return False
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER)
    try:
        connection.request("GET", "/health/live")
        return connection.getresponse().read(64) == b'{"status":"live"}'
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _ports(settings: Settings, *, running: bool) -> Iterator[Finding]:
    server, api = settings.server, settings.api
    if running:
        text = f"{server.port} on {server.host}: a Steadwire server is running there"
        yield Finding(OK, "port", text)
        return
    yield _port(server.host, server.port, "server")
    if api.port is None:
        return
    yield _port(api.host or server.host, api.port, "api")
    if api.port == server.port != 0 and api.host in ("", server.host):
        yield Finding(
            PROBLEM,
            "port",
            "api.port is server.port: the API has no address of its own",
            "set api.port to another, or leave it out",
        )


def _port(host: str, port: int, section: str) -> Finding:
    where = f"{port} on {host}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with contextlib.closing(socket.socket(family, kind, protocol)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return Finding(
                PROBLEM,
                "port",
                f"{where} is in use",
                f"if that is Steadwire, it runs already; else set {section}.port",
            )
        return Finding(
            PROBLEM,
            "port",
            f"{where} cannot be bound: {error.strerror}",
            f"set {section}.host to an address of this machine, and {section}.port to "
            "one that this user may bind (from 1024)",
        )
    return Finding(OK, "port", f"{where} is free")


def _hypercorn() -> Finding:
    try:
        from service.server import HYPERCORN_VERSIONS
    except ImportError as error:
        return Finding(
            PROBLEM,
            "hypercorn",
            f"cannot be used: {error}",
            "install Steadwire again, with its dependencies",
        )
    found = version("hypercorn")
    if found in HYPERCORN_VERSIONS:
        return Finding(OK, "hypercorn", found)
    supported = ", ".join(sorted(HYPERCORN_VERSIONS))
    return Finding(
        PROBLEM,
        "hypercorn",
        f"{found} is not supported, only {supported}",
        f"pip install hypercorn=={max(HYPERCORN_VERSIONS)}",
    )


def _compiled() -> Finding:
    if _speedups.COMPILED:
        return Finding(OK, "speedups", "compiled")
    if _speedups.NO_SPEEDUPS:
        remedy = "unset SERVICE_NO_SPEEDUPS"
    elif platform.python_implementation() != "CPython":
        remedy = "they are for CPython only"
    else:
        remedy = (
            "get a C compiler, and install Steadwire again with "
            "SERVICE_BUILD_SPEEDUPS=yes (docs/speedups.md)"
        )
    return Finding(
        NOTE, "speedups", "not compiled: it is slower than it could be", remedy
    )
