"""The watchdogs of overload: what each measures, and from where it asks for a level."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.connections.memory import memory_limit, resident_bytes
from service.connections.overload import CAUSES, Overload
from service.core.shedding import Shedding
from service.settings import OverloadSettings

MIB = 1024 * 1024


class Watched:
    """Watchdogs, and what they look at."""

    def __init__(self, limit: int | None = None, **settings: Any) -> None:
        self.queued = 0
        self.appends = 0.0
        self.resident: int | None = 0
        self.shedding = Shedding(10.0, Random(1))
        self.now = 0.0
        self.overload = Overload(
            OverloadSettings(**settings),
            self.shedding,
            queued=lambda: self.queued,
            appends=lambda: self.appends,
            resident=lambda: self.resident,
            limit=lambda: limit,
        )

    def level(self, lag: float = 0.0) -> int:
        """Return the level that is found when it was calm before."""
        self.now += 100.0
        self.overload.measure(self.now, lag)
        return self.shedding.level


@pytest.mark.requirement("L20")
@pytest.mark.parametrize(
    ("lag", "level"),
    [(0.999, 0), (1.0, 1), (1.999, 1), (2.0, 2), (3.999, 2), (4.0, 3), (60.0, 3)],
)
def test_the_lag_of_the_loop(lag: float, level: int) -> None:
    assert Watched().level(lag) == level
    assert Watched(loop_lag=0.5).level(lag / 2) == level
    assert Watched(loop_lag=0.0).level(lag) == 0


@pytest.mark.requirement("L20")
@pytest.mark.parametrize(
    ("mebibytes", "level"),
    [(79.9, 0), (80, 1), (89.9, 1), (90, 2), (94.9, 2), (95, 3), (200, 3)],
)
def test_memory_and_queues(mebibytes: float, level: int) -> None:
    size = int(mebibytes * MIB)
    watched = Watched(memory=100 * MIB)
    watched.resident = size
    assert watched.level() == level
    watched = Watched(100 * MIB)  # the control group's
    watched.resident = size
    assert watched.level() == level
    watched = Watched(queued=100 * MIB)
    watched.queued = size
    assert watched.level() == level
    watched = Watched()
    watched.appends = mebibytes / 100
    assert watched.level() == level


def test_without_a_limit_nothing_is_shed() -> None:
    for watched in (Watched(queued=0), Watched(100 * MIB, memory=0, queued=0)):
        watched.resident, watched.queued = 1000 * MIB, 1000 * MIB
        assert watched.level() == 0
    watched = Watched(100 * MIB)
    watched.resident = None  # not Linux
    assert watched.level() == 0


@pytest.mark.requirement("L20", "L25")
def test_a_change_is_logged_with_its_causes_and_figures_and_nothing_else_is() -> None:
    watched = Watched(memory=100 * MIB)
    watched.resident = 91 * MIB
    with capture_logs() as lines:
        for now in (1.0, 2.0, 3.0):
            watched.overload.measure(now, 1.5)
        watched.resident = 0
        watched.overload.measure(12.9, 0.0)
        watched.overload.measure(13.0, 0.0)
    rises, falls = lines
    figures = {"queued": 0.0, "appends": 0.0}
    assert rises == {
        "event": "the shed level rises",
        "log_level": "warning",
        "shed_level": 2,
        "before": 0,
        "causes": ["loop_lag", "memory"],
        "loop_lag": 1.5,
        "memory": 0.91,
        **figures,
    }
    assert falls == {
        "event": "the shed level falls",
        "log_level": "info",
        "shed_level": 0,
        "before": 2,
        "causes": [],
        "loop_lag": 0.0,
        "memory": 0.0,
        **figures,
    }
    assert tuple(watched.shedding.causes) == CAUSES


# What the memory is, and its limit.


def test_the_memory_of_this_process() -> None:
    before = resident_bytes()
    assert before is not None
    large = bytearray(b"x") * (64 * MIB)
    after = resident_bytes()
    assert after is not None
    assert after - before > 48 * MIB
    del large


@pytest.mark.parametrize("text", [None, "", "1", "a b"])
def test_a_memory_that_cannot_be_read(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "statm"
    if text is not None:
        path.write_text(text)
    assert resident_bytes(str(path)) is None


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        # The second version: a service of systemd, below a slice with a lower limit.
        (
            "0::/app.slice/steadwire.service\n",
            {
                "app.slice/steadwire.service/memory.max": "500\n",
                "app.slice/memory.max": "400\n",
                "memory.max": "max\n",
            },
            400,
        ),
        # A container, whose own group is mounted at the root.
        ("0::/\n", {"memory.max": "300\n"}, 300),
        ("0::/docker/abc\n", {"memory.max": "300\n"}, 300),
        ("0::/\n", {"memory.max": "max\n"}, None),
        # The first version.
        (
            "5:cpu:/a\n4:hugetlb,memory:/docker/abc\n0::/\n",
            {
                "memory/docker/abc/memory.limit_in_bytes": "200\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            200,
        ),
        ("4:memory:/x\n", {"memory/memory.limit_in_bytes": "200\n"}, 200),
        (
            "4:memory:/x\n",
            {"memory/memory.limit_in_bytes": "9223372036854771712\n"},
            None,
        ),
        ("1:cpu:/\n", {}, None),
        (None, {"memory.max": "300\n"}, None),  # not Linux
    ],
)
def test_the_limit_of_the_control_group(
    tmp_path: Path, groups: str | None, files: dict[str, str], limit: int | None
) -> None:
    if groups is not None:
        (tmp_path / "groups").write_text(groups)
    root = tmp_path / "root"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert memory_limit(tmp_path / "groups", root) == limit
