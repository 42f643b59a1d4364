"""The one seam to Hypercorn: what it does not do, and the process around it.

`stream` is one WebSocket, `connection` one TCP connection, `process` the life of the
process. Nothing else in the package knows that the server is Hypercorn.
"""

from __future__ import annotations

from service.server.connection import HYPERCORN_VERSIONS, install
from service.server.process import Application, run, serve

__all__ = [
    "HYPERCORN_VERSIONS",
    "Application",
    "install",
    "run",
    "serve",
]
