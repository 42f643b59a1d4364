"""Fault proxy: a bad network on one machine, as a TCP proxy with seeded faults.

In a test::

    async with FaultProxy(server.port, profile=PROFILES["poor"], seed=7) as proxy:
        ...  # connect to proxy.port
        proxy.reset()

By hand, with commands on stdin (``python -m tests.faultproxy --help``)::

    python -m tests.faultproxy --listen 9000 --to 8000 --profile poor --seed 7
"""

from __future__ import annotations

from tests.faultproxy.profiles import CLEAR, PROFILES, Profile
from tests.faultproxy.proxy import FaultProxy

__all__ = ["CLEAR", "PROFILES", "FaultProxy", "Profile"]
