"""Memory of this process, and the limit that its control groups set (Linux)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["memory_limit", "resident_bytes"]

UNLIMITED = 2**60
"""Bytes; what the first version of control groups has for no limit is above."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(path: str = "/proc/self/statm") -> int | None:
    """Return the resident memory of this process; None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return None


def memory_limit(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the least limit of the control groups that this process is in.

    Args:
        groups: Names the groups, as cgroups(7) describes it.
        root: Where they are mounted. In a container that is often its own group, with
            none of the names that *groups* has.

    Returns:
        Bytes; None without a limit.
    """
    limits = []
    for file in _files(groups, root):
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int(file.read_text()))
    return min((limit for limit in limits if limit < UNLIMITED), default=None)


def _files(groups: Path, root: Path) -> Iterator[Path]:
    """Yield the files of limits: of each group of this process, and those above it."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = top / path.lstrip("/")
        yield folder / name
        while folder != top and top in folder.parents:
            folder = folder.parent
            yield folder / name
