"""The two forms that the protocol has on a socket, with one face.

A codec is what a connection was opened with; it never changes. All that is above the
socket gives it JSON text and is given commands, whichever it is.
"""

from __future__ import annotations

from typing import Any, Protocol

from service.core.model import size_of
from service.core.ports import Encoding
from service.protocol import json, protobuf

__all__ = ["Codec", "Json", "Protobuf"]


class Codec(Encoding, Protocol):
    """A form of the protocol.

    Attributes:
        name: As the server API shows it.
        binary: Whether its frames are binary.
    """

    name: str
    binary: bool

    def decode(self, frame: Any) -> list[json.Command]:
        """Return the commands of a frame.

        Raises:
            CodecError: It is not one or more well-formed commands.
        """
        ...


class Json:
    """Text frames; messages are lines."""

    name = "json"
    binary = False
    gap = 1
    decode = staticmethod(json.decode)
    size = staticmethod(size_of)
    join = "\n".join

    @staticmethod
    def encode(text: str) -> str:
        """Return the message as it stands."""
        return text


class Protobuf(protobuf.Encoder):
    """Binary frames; each message comes after its length."""

    __slots__ = ()

    name = "protobuf"
    binary = True
    gap = 0
    decode = staticmethod(protobuf.decode)
    size = staticmethod(len)
    join = b"".join
