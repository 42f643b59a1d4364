"""The port that both forms of the client protocol implement, JSON and protobuf.

A connection is opened with one form and never changes it. Above the socket all is
typed commands and JSON text, whichever form it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from service.core.ports import Encoding
from service.protocol.commands import Command

__all__ = ["Codec", "negotiate"]

_SUBPROTOCOLS = {"centrifuge-json": False, "centrifuge-protobuf": True}


class Codec(Encoding, Protocol):
    """A form of the protocol.

    Attributes:
        name: As the server API shows it.
        binary: Whether its frames are binary.
    """

    name: str
    binary: bool

    def decode(self, frame: Any) -> list[Command]:
        """Return the commands of a frame.

        Raises:
            CodecError: The frame is not one or more well-formed commands.
        """


def negotiate(
    offered: Iterable[str], asked: Iterable[str | None]
) -> tuple[str | None, bool]:
    """Return the subprotocol of a connection, if any, and whether it is protobuf.

    Args:
        offered: The subprotocols that the client offers. Old SDKs send an empty header;
            only a known name is answered.
        asked: What the URL asks for, in ``format`` and ``cf_protocol``.
    """
    subprotocol = next((name for name in offered if name in _SUBPROTOCOLS), None)
    if subprotocol is not None:
        return subprotocol, _SUBPROTOCOLS[subprotocol]
    return None, "protobuf" in asked
