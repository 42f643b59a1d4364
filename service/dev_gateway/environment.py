"""Environment: the process in which `service.dev_gateway.integrations` runs a function.

    python -m service.dev_gateway.environment MODULE:HANDLER DESCRIPTOR

It reads an event a line from the socket with that descriptor, and writes the answer of
``HANDLER(event, None)`` as a line. An exception is answered by its type alone.
"""

from __future__ import annotations

import importlib
import json
import socket
import sys

__all__ = []


def main(handler: str, descriptor: str) -> None:
    """Handle events until the gateway closes the socket."""
    with socket.socket(fileno=int(descriptor)) as link, link.makefile("rwb") as lines:
        module, _, name = handler.partition(":")
        function = getattr(importlib.import_module(module), name)
        for line in lines:
            try:
                answer = function(json.loads(line), None)
            except Exception as error:
                answer = {"errorType": type(error).__name__}
            lines.write(json.dumps(answer).encode() + b"\n")
            lines.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
