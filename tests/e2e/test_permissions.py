"""No other user can read what the server and its commands write, whatever the umask."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.process import environment, launched
from tests.harness.server import Server


@pytest.fixture
def no_umask() -> Iterator[None]:
    """Give the processes that a test starts the umask 0."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()
    }


def command(server: Server, directory: Path, *arguments: str) -> None:
    path = server.settings["STEADWIRE_STORE_PATH"]
    subprocess.run(
        launched(sys.executable, "-m", "service", *arguments),
        cwd=directory,
        env=environment({"STEADWIRE_STORE_PATH": path}),
        check=True,
        capture_output=True,
        timeout=60,
    )


@pytest.mark.usefixtures("no_umask")
async def test_what_is_written_is_for_this_user_alone(tmp_path: Path) -> None:
    names = ["", "-shm", "-wal", ".lock"]
    server = Server(tmp_path)
    await server.start()
    async with server.api() as api:
        await api.publish("a", {"text": "for members only"})
    command(server, tmp_path, "backup", "copy.db")
    expected = {f"steadwire.db{name}": 0o600 for name in names}
    assert modes(tmp_path) == {**expected, "copy.db": 0o600}
    assert not [line for line in server.log() if "other users" in line["event"]]
    await server.terminate()
    (tmp_path / "steadwire.db").unlink()
    command(server, tmp_path, "restore", "copy.db")
    found = modes(tmp_path)
    assert set(found.values()) == {0o600}, found
    server.close()


async def test_wider_permissions_are_said_once(tmp_path: Path) -> None:
    server = Server(tmp_path)
    await server.start()
    await server.terminate()
    (tmp_path / "steadwire.db").chmod(0o644)
    await server.start()
    path = str(tmp_path / "steadwire.db")
    await server.logged("other users")
    (line,) = [line for line in server.log() if "other users" in line["event"]]
    assert (line["level"], line["remedy"]) == ("warning", f"chmod 600 {path}")
    assert modes(tmp_path)["steadwire.db"] == 0o644, "it is the operator's to mend"
    server.close()
