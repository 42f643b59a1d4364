"""Agents: the AG-UI servers that the relay calls for its clients."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from service.settings.headers import HEADER, OF_THE_CONNECTION
from service.settings.sections import (
    Seconds,
    Secret,
    Section,
    without_credentials,
)

__all__ = ["AgentSettings", "mistakes_of"]

_NAME = re.compile(r"[-_A-Za-z0-9]{1,64}")
# What the relay sets itself; a second one would contradict it.
_OURS = frozenset({"accept", "cache-control"})


class AgentSettings(Section, frozen=True, kw_only=True):
    """An AG-UI agent behind Steadwire (docs/agents.md); a table for each.

    Clients run it with ``POST /agui/<name>``. The request is made from the process
    itself, without the environment's proxies, and follows no redirect.

    Attributes:
        name: The last part of the clients' path: letters, digits, ``-`` and ``_``.
        url: The agent's address, which takes a RunAgentInput and answers with
            server-sent events.
        headers: Headers of each request to it, such as ``Authorization``. Their values
            are secrets.
        timeout: An agent that sends nothing for this long is lost: its run ends with
            RUN_ERROR ``agent_lost``. It holds for connecting, too.
    """

    name: str
    url: str = ""
    headers: dict[str, Secret] = msgspec.field(default_factory=dict)
    timeout: Seconds = 120.0

    def mistakes(self) -> Iterator[str]:
        """Yield a line for each value that cannot be used."""
        where = f"agents {self.name!r}"
        if not _NAME.fullmatch(self.name):
            yield (
                f"{where}: a name is 1 to 64 letters, digits, '-' and '_': clients "
                "write it in their path"
            )
        if not self.url:
            yield f"{where}: it needs a url"
        elif not self.url.startswith(("http://", "https://")):
            yield f"{where}: {without_credentials(self.url)!r} is not an http(s) URL"
        for name, value in self.headers.items():
            if not HEADER.fullmatch(name):
                yield f"{where}: headers: {name!r} is not the name of a header"
            elif OF_THE_CONNECTION.fullmatch(name) or name.lower() in _OURS:
                yield f"{where}: headers: {name!r} is set by the relay itself"
            elif not _is_value(value):
                yield (
                    f"{where}: headers: the value of {name!r} has characters that no "
                    "header may have"
                )


def _is_value(value: Secret) -> bool:
    text = "".join(value)  # a secret prints as [secret]
    return text.isascii() and text.isprintable() and text == text.strip()


def mistakes_of(agents: Sequence[AgentSettings]) -> Iterator[str]:
    """Yield a line for each value that cannot be used, alone or beside the others."""
    names = [agent.name for agent in agents]
    for agent in agents:
        yield from agent.mistakes()
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"agents: {name!r} is defined twice"
