"""infra/systemd: the unit is one for systemd, and starts the service that it says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.settings import load
from tests.harness.process import ROOT
from tests.harness.server import Server, ServerFailed
from tests.harness.tools import missing

UNIT = ROOT / "infra" / "systemd" / "steadwire.service"
CONFIG = ROOT / "infra" / "systemd" / "steadwire.toml"
EXPOSURE = 15  # tenths; that of a unit without hardening is 96

SECRETS = {
    "STEADWIRE_API_KEY": "a" * 32,
    "STEADWIRE_TOKEN_HMAC_SECRET_KEY": "t" * 64,
}


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.M)


def variables(state: Path) -> dict[str, str]:
    """Return the environment of the process, with its directories below *state*."""
    credentials = state / "credentials"
    credentials.mkdir()
    [name, _source] = values("LoadCredential")[0].split(":")
    shutil.copy(CONFIG, credentials / name)
    pairs = [each.split("=", 1) for each in values("Environment")]
    return {
        name: value.replace("%S", str(state)).replace("%d", str(credentials))
        for name, value in pairs
    }


@pytest.fixture
def analyze(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    executable = shutil.which("systemd-analyze")
    if executable is None:
        missing("systemd-analyze", "sudo apt-get install -y systemd")

    def run(*arguments: str, text: str) -> subprocess.CompletedProcess[str]:
        unit = tmp_path / "steadwire.service"
        # It looks whether there is such a program.
        unit.write_text(text.replace("/opt/steadwire/bin/steadwire", sys.executable))
        return subprocess.run(
            [executable, *arguments, unit], capture_output=True, text=True
        )

    return run


def test_systemd_understands_all_of_it(
    analyze: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = analyze("verify", text=UNIT.read_text())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    planted = UNIT.read_text().replace("DynamicUser=", "DynamicUsers=")
    assert "DynamicUsers" in analyze("verify", text=planted).stderr


def test_it_is_hardened(
    analyze: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    check = ["security", "--offline=true", f"--threshold={EXPOSURE}"]
    assert analyze(*check, text=UNIT.read_text()).returncode == 0
    planted = UNIT.read_text().replace("DynamicUser=yes\n", "")
    assert analyze(*check, text=planted).returncode == 1


def test_it_waits_for_the_clients_to_be_sent_away(tmp_path: Path) -> None:
    own = load(variables(tmp_path) | SECRETS, {})
    drain = own.server.drain_time or 0.0
    assert float(values("TimeoutStopSec")[0]) > drain + own.server.shutdown_timeout


@pytest.mark.slow
async def test_the_service_runs_with_this_environment(tmp_path: Path) -> None:
    """Its own mistakes it does not start again with, and systemd does not either."""
    own = variables(tmp_path)
    store = Path(own["STEADWIRE_STORE_PATH"])
    assert store.parent == tmp_path / values("StateDirectory")[0]
    assert values("WorkingDirectory") == ["%S/" + values("StateDirectory")[0]]
    store.parent.mkdir()
    server = Server(store.parent)
    server.settings = own
    try:
        server.spawn()
        with pytest.raises(ServerFailed, match=r"has no way to know its clients"):
            server.wait_ready()
        assert server.process.wait(10) == int(values("RestartPreventExitStatus")[0])
    finally:
        server.close()
    server = Server(store.parent)
    server.settings = own | SECRETS
    try:
        await server.start()
        server.key = SECRETS["STEADWIRE_API_KEY"]
        async with server.api() as api:
            assert await api.publish("on one machine", 1) == 1
        assert store.is_file()
        assert await server.terminate() == 0
    finally:
        server.close()
