"""The port that both forms of the client protocol implement, JSON and protobuf.

A connection is opened with one form and never changes it. Above the socket all is
typed commands and JSON text, whichever form it is.
"""

from __future__ import annotations

from typing import Any, Protocol

from service.core.ports import Encoding
from service.protocol.commands import Command

__all__ = ["Codec"]


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
