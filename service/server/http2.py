"""HTTP/2: Hypercorn's, which goes on when an answer comes before the whole body.

Hypercorn ends the connection then, and with it the other requests.
"""

from __future__ import annotations

import h2.events
from hypercorn.protocol.h2 import H2Protocol

__all__ = ["Http2Protocol"]


class Http2Protocol(H2Protocol):
    """The requests of one connection, side by side."""

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if (
                isinstance(event, h2.events.DataReceived)
                and event.stream_id not in self.streams
            ):
                # The rest of a body that nobody wants; the window stays open for it, as
                # it is one for all requests.
                self.connection.acknowledge_received_data(
                    event.flow_controlled_length, event.stream_id
                )
            else:
                await super()._handle_events([event])
        await self._flush()
