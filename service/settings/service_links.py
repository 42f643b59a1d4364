"""Service links: the variables that Kubernetes writes into every container.

For a Service called ``steadwire`` each Pod of its namespace gets ``STEADWIRE_PORT``
with ``tcp://10.0.0.7:8000``, ``STEADWIRE_SERVICE_HOST`` and more, which are not
settings. They are known by their name and the shape of their value together
(https://kubernetes.io/docs/tutorials/services/connect-applications-service/).
"""

from __future__ import annotations

import re

__all__ = ["is_service_link"]

_URL = r"(tcp|udp|sctp)://\S+:[0-9]{1,5}"
_LINKS = tuple(
    (re.compile(name), re.compile(value))
    for name, value in (
        (r"\w+_SERVICE_HOST", r"[0-9a-fA-F.:]+"),
        (r"\w+_SERVICE_PORT(_\w+)?", r"[0-9]{1,5}"),
        (r"\w+_PORT", _URL),
        (r"\w+_PORT_[0-9]+_(TCP|UDP|SCTP)", _URL),
        (r"\w+_PORT_[0-9]+_(TCP|UDP|SCTP)_PROTO", r"tcp|udp|sctp"),
        (r"\w+_PORT_[0-9]+_(TCP|UDP|SCTP)_PORT", r"[0-9]{1,5}"),
        (r"\w+_PORT_[0-9]+_(TCP|UDP|SCTP)_ADDR", r"[0-9a-fA-F.:]+"),
    )
)


def is_service_link(name: str, value: str) -> bool:
    """Tell whether a variable was written by Kubernetes and not by a person."""
    return any(n.fullmatch(name) and v.fullmatch(value) for n, v in _LINKS)
