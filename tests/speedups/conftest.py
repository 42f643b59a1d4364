"""Hypothesis as in tests/conftest.py, for builds tested apart from the tree."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "speedups",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("speedups")
