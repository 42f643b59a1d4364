"""Examination of the endpoints of hooks over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from service.cli.doctor.finding import NOTE, OK, PROBLEM, Finding
from service.core.errors import SettingsError
from service.core.hooks import Handlers
from service.settings import Settings

__all__ = ["examine_hooks"]

_HOOKS = "hooks"


def examine_hooks(settings: Settings) -> Iterator[Finding]:
    """Examine whether each endpoint can be reached; no hook is called."""
    endpoints = settings.proxy.endpoints
    if not endpoints:
        return
    try:
        unreachable = asyncio.run(_unreachable(settings))
    except SettingsError as error:
        yield Finding(PROBLEM, _HOOKS, str(error), "correct that setting")
        return
    for name, url in endpoints.items():
        if name in unreachable:
            yield Finding(
                PROBLEM,
                _HOOKS,
                f"proxy.{name} cannot be reached: {unreachable[name]}",
                "see that this machine reaches it and trusts its certificate",
            )
        elif url.startswith("http:") and settings.strict:
            yield Finding(
                NOTE,
                _HOOKS,
                f"proxy.{name} is not encrypted: it is sent tokens and payloads",
                "use https, unless the network between is your own",
            )
        else:
            yield Finding(OK, _HOOKS, f"proxy.{name} can be reached")


async def _unreachable(settings: Settings) -> dict[str, str]:
    from service.http.hooks_proxy import HooksProxy

    proxy = HooksProxy(settings.proxy, settings.tls)
    try:
        proxy.handlers(Handlers())  # reads the URLs
        return await proxy.unreachable()
    finally:
        await proxy.close()
