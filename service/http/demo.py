"""The page of development and its simulated agent, joined to a runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Self

from service.core.ports import Clock
from service.demo.page import Page, read_files
from service.demo.process import AgentProcess
from service.runtime import Runtime
from service.settings import AgentSettings

__all__ = ["Demo"]

NAME = "demo"
"""The agent's name, as in ``POST /agui/demo``."""


class Demo:
    """The simulated agent, and the files of the page.

    Args:
        files: From `read_files`.
        agent: The agent.
    """

    def __init__(self, files: dict[str, bytes], agent: AgentProcess) -> None:
        self._files = files
        self._agent = agent

    @classmethod
    async def open(cls, clock: Clock) -> Self:
        """Read the files, and listen for the agent.

        Raises:
            StartupError: The files are missing.
        """
        files = await asyncio.to_thread(read_files, Path.cwd())
        return cls(files, AgentProcess(clock))

    async def close(self) -> None:
        """End the agent."""
        await self._agent.close()

    def agents(self, known: tuple[AgentSettings, ...]) -> tuple[AgentSettings, ...]:
        """Return the agents of the settings, and the simulated one beside them."""
        if any(each.name == NAME for each in known):
            return known
        return (*known, AgentSettings(name=NAME, url=self._agent.url))

    def page(self, runtime: Runtime, opened: Callable[[], object]) -> Page:
        """Return the page of a running service, which calls *opened* for each load."""
        return Page(
            self._files,
            origins=runtime.settings.origins,
            tickets=runtime.tickets,
            wall=runtime.clock.wall,
            revoke=runtime.revocations.revoke_token,
            kill=self._agent.kill,
            opened=opened,
        )
