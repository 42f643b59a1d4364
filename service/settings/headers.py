"""Names of HTTP headers that settings may list."""

from __future__ import annotations

import re

__all__ = ["HEADER", "OF_THE_CONNECTION"]

HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""The name of a header (RFC 9110, 5.6.2)."""

OF_THE_CONNECTION = re.compile(
    r"host|connection|keep-alive|te|trailer|transfer-encoding|upgrade|expect"
    r"|content-.*|accept-encoding|sec-websocket-.*|proxy-.*",
    re.IGNORECASE,
)
"""Those that describe one connection or request."""
