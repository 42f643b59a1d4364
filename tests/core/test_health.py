"""Health checks: the present faults, and a level for each check."""

from __future__ import annotations

from service.core.health import Checks, Fault


def test_faults_and_levels() -> None:
    checks = Checks()
    checks.add("store", lambda: Fault("locked", failing=True))
    checks.add("sweep", lambda: Fault("late", failing=False))
    checks.add("keys", lambda: None)
    assert checks.faults() == {
        "store": Fault("locked", failing=True),
        "sweep": Fault("late", failing=False),
    }
    assert checks.levels() == {"store": 2.0, "sweep": 1.0, "keys": 0.0}


def test_a_check_of_the_same_name_replaces_the_first() -> None:
    checks = Checks()
    checks.add("store", lambda: Fault("locked", failing=True))
    checks.add("store", lambda: None)
    assert checks.faults() == {}
