"""Client of one agent: the request that runs it, and the events of its answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx

from service.core.errors import CodecError, SteadwireError
from service.core.event_stream import EVENT_STREAM, EventStreamReader
from service.core.fetch import cause_of, http_client
from service.settings import AgentSettings, TlsSettings

__all__ = ["RUNS", "AgentClient", "AgentLost"]

RUNS = 100
"""Most runs of one agent at once (count)."""

EVENT_SIZE = 1024 * 1024  # bytes; an agent that sends a larger event is lost

_KEPT = 10  # connections kept for the next runs (count)
_IDLE = 5.0  # s that they are kept: servers close idle ones, uvicorn after 5


class AgentLost(SteadwireError):
    """The agent cannot be asked, or its answer broke off.

    The text says why, in words that quote nothing of the answer.
    """


class AgentClient:
    """An agent of the settings.

    Its connections are limited by `RUNS`, which the caller keeps to: there is no queue.

    Args:
        settings: The agent's.
        tls: The authorities that are trusted.

    Raises:
        SettingsError: The authorities cannot be read.
    """

    def __init__(self, settings: AgentSettings, tls: TlsSettings) -> None:
        self._settings = settings
        self._client = http_client(
            {"Content-Type": "application/json", "Accept": EVENT_STREAM},
            httpx.Limits(
                max_connections=RUNS,
                max_keepalive_connections=_KEPT,
                keepalive_expiry=_IDLE,
            ),
            ca_file=tls.ca_file,
            ca_directory=tls.ca_directory,
        )
        # A secret prints as [secret]; joined, it is the text.
        self._headers = {
            name: "".join(value) for name, value in settings.headers.items()
        }

    async def close(self) -> None:
        """Close the connections; runs under way lose the agent."""
        await self._client.aclose()

    async def run(self, request: str) -> AsyncGenerator[str, None]:
        """Run the agent; yield the data of each event that it sends, until it ends.

        Closing the generator closes the request, from which the agent sees that nobody
        wants more.

        Args:
            request: The RunAgentInput, as JSON.

        Raises:
            AgentLost: The agent cannot be asked, or its answer broke off.
        """
        timeout = self._settings.timeout
        reader = EventStreamReader(EVENT_SIZE)
        try:
            async with self._client.stream(
                "POST",
                self._settings.url,
                content=request,
                headers=self._headers,
                timeout=httpx.Timeout(timeout),
            ) as response:
                _check(response)
                async for piece in response.aiter_raw():
                    for event in reader.feed(piece):
                        yield event.data
        except httpx.TimeoutException:
            raise AgentLost(f"it sent nothing for {timeout:.10g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise AgentLost(cause_of(error)) from None
        except CodecError as error:
            raise AgentLost(f"it sent {error}") from None

    async def unreachable(self) -> str:
        """Return why the agent cannot be reached; "" if it answers.

        It is asked for its OPTIONS, which starts nothing; any answer will do.
        """
        try:
            timeout = min(self._settings.timeout, 5.0)
            await self._client.options(
                self._settings.url, headers=self._headers, timeout=timeout
            )
        except httpx.TimeoutException:
            return f"no answer within {timeout:.10g} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return cause_of(error)
        return ""


def _check(response: httpx.Response) -> None:
    if not response.is_success:
        raise AgentLost(f"it answered with status {response.status_code}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise AgentLost("it compressed its answer, which was not asked for")
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != EVENT_STREAM:
        raise AgentLost(f"its answer is not {EVENT_STREAM}")
