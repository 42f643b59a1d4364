"""The server: Hypercorn with our connections and streams, and the life of the process.

`install` puts our classes in the place of Hypercorn's, `tcp_connection` is one TCP
connection, `tracker` the set of all of them, `http1` or `http2` the protocol on one,
`http_stream` one request, `stream` one WebSocket. `process` is the life of the process.
Nothing else in the package knows that the server is Hypercorn.
"""

from __future__ import annotations

from service.server.install import HYPERCORN_VERSIONS, install
from service.server.process import Application, run, serve

__all__ = [
    "HYPERCORN_VERSIONS",
    "Application",
    "install",
    "run",
    "serve",
]
