"""Installation of our classes in Hypercorn, which looks its own up by name.

It holds under ``steadwire serve`` and under the ``hypercorn`` command alike.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Final

import hypercorn.asyncio.run
import hypercorn.protocol
import hypercorn.protocol.h2
import hypercorn.protocol.h11

from _speedups import SharedFrame
from service.core.errors import StartupError
from service.core.refusal_log import RefusalLog
from service.server.frame_stream import FrameStream
from service.server.http1 import Http1Protocol
from service.server.http2 import Http2Protocol
from service.server.http_stream import HttpStream
from service.server.stream import WebSocketStream
from service.server.tcp_connection import TcpConnection
from service.server.tracker import ConnectionTracker
from service.settings import ServerSettings, Settings

__all__ = ["HYPERCORN_VERSIONS", "install"]

# The classes of this folder override methods that Hypercorn does not document.
HYPERCORN_VERSIONS: Final = frozenset({"0.18.0"})


def install(settings: Settings, refusals: RefusalLog) -> ConnectionTracker:
    """Make Hypercorn construct our connections and streams; the last call counts.

    Args:
        settings: Of the listener, and of the limits of each address and connection.
        refusals: Counts the connections that were cut off or not served.

    Raises:
        StartupError: Steadwire was not tested with this version of Hypercorn.
    """
    found = version("hypercorn")
    if found not in HYPERCORN_VERSIONS:
        raise StartupError(
            f"hypercorn {found} is not supported, only "
            + ", ".join(sorted(HYPERCORN_VERSIONS))
        )
    tracker = ConnectionTracker(settings, refusals)
    stream = partial(WebSocketStream, settings.server)
    own: Callable[..., WebSocketStream] = stream
    if not settings.server.wsproto:
        own = partial(FrameStream, _shared_frames(settings.server), settings.server)
    # Hypercorn only ever calls these names. Its modules import them without exporting
    # them, hence the ignored errors.
    hypercorn.asyncio.run.TCPServer = partial(TcpConnection, tracker)  # type: ignore[assignment,attr-defined]
    hypercorn.protocol.H2Protocol = Http2Protocol  # type: ignore[assignment,attr-defined]
    hypercorn.protocol.H11Protocol = Http1Protocol  # type: ignore[assignment,attr-defined]
    hypercorn.protocol.h11.HTTPStream = HttpStream  # type: ignore[attr-defined]
    hypercorn.protocol.h2.HTTPStream = HttpStream  # type: ignore[attr-defined]
    hypercorn.protocol.h11.WSStream = own  # type: ignore[assignment,attr-defined]
    hypercorn.protocol.h2.WSStream = stream  # type: ignore[assignment,attr-defined]
    return tracker


def _shared_frames(settings: ServerSettings) -> Callable[[int], SharedFrame]:
    """Return what has the frames that go to many, by the window of those deflated."""
    found: dict[int, SharedFrame] = {0: SharedFrame()}

    def shared(window: int) -> SharedFrame:
        if window not in found:
            found[window] = SharedFrame(settings.deflate_size, window)
        return found[window]

    return shared
