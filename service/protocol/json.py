"""The JSON form of the client protocol: text frames, a message a line."""

from __future__ import annotations

from _speedups import scan_commands
from service.core.errors import CodecError
from service.core.model import size_of
from service.protocol.commands import Command, read_commands

__all__ = ["Json"]


class Json:
    """The JSON form, as a `Codec`; it has no state."""

    name = "json"
    binary = False
    gap = 1
    plain = True
    size = staticmethod(size_of)
    join = "\n".join

    @staticmethod
    def decode(frame: str | bytes) -> list[Command]:
        """Return the commands of a frame.

        Raises:
            CodecError: The frame is not one or more well-formed commands.
        """
        try:
            scanned = scan_commands(frame)
        except ValueError as error:
            raise CodecError(str(error)) from error
        return read_commands(scanned)

    @staticmethod
    def encode(text: str) -> str:
        """Return the message as it stands."""
        return text
