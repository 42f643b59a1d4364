"""Kinds of ids are types of their own, and the type checker holds them apart."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MIXED = """\
from service.core.model import Channel, ClientId, UserId

def close(client: ClientId) -> None: ...
def show(user: UserId) -> None: ...
def publish(channel: Channel) -> None: ...

user, client, channel = UserId("ann"), ClientId("c1"), Channel("news")
close(client); show(user); publish(channel)
close(user)
close(channel)
show(client)
show(channel)
publish(user)
publish(client)
close("c1")
show("ann")
publish("news")
"""
FIRST, LAST = 9, 17  # the lines that mix


@pytest.mark.requirement("L26")
def test_to_mix_kinds_of_ids_is_an_error_of_types(tmp_path: Path) -> None:
    (tmp_path / "mixed.py").write_text(MIXED)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-pretty"),
            *("--config-file=", "--follow-imports=silent"),
            *("--cache-dir", str(tmp_path / "cache"), str(tmp_path / "mixed.py")),
        ],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    lines = re.findall(r"^\S*mixed\.py:(\d+): error: .*\[arg-type\]", done.stdout, re.M)
    assert [int(line) for line in lines] == [*range(FIRST, LAST + 1)], done.stdout
