"""Examination of the agents of the settings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.util import find_spec

from service.cli.doctor.finding import NOTE, OK, PROBLEM, Finding
from service.core.errors import SettingsError
from service.settings import Settings

__all__ = ["examine_agents"]

_AGENTS = "agents"


def examine_agents(settings: Settings) -> Iterator[Finding]:
    """Examine whether agents can be run, and each be reached; none is run."""
    if find_spec("ag_ui") is None and (settings.agents or settings.has_page):
        level = PROBLEM if settings.agents else NOTE  # the page's agent is a toy
        words = "ag-ui-protocol is not installed: no agent can be run"
        yield Finding(level, _AGENTS, words, "pip install 'steadwire[agents]'")
    if not settings.agents:
        return
    try:
        unreachable = asyncio.run(_unreachable(settings))
    except SettingsError as error:
        yield Finding(PROBLEM, _AGENTS, str(error), "correct that setting")
        return
    for agent in settings.agents:
        if reason := unreachable[agent.name]:
            yield Finding(
                PROBLEM,
                _AGENTS,
                f"{agent.name} cannot be reached: {reason}",
                "see that this machine reaches it and trusts its certificate",
            )
        elif agent.url.startswith("http:") and settings.strict:
            yield Finding(
                NOTE,
                _AGENTS,
                f"{agent.name} is not encrypted: it is sent what people say",
                "use https, unless the network between is your own",
            )
        else:
            yield Finding(OK, _AGENTS, f"{agent.name} can be reached")


async def _unreachable(settings: Settings) -> dict[str, str]:
    from service.http.agui.agent_client import AgentClient

    reasons = {}
    for agent in settings.agents:
        client = AgentClient(agent, settings.tls)
        try:
            reasons[agent.name] = await client.unreachable()
        finally:
            await client.close()
    return reasons
