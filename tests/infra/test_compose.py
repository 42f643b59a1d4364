"""infra/compose.yaml: its commands and variables make the stack that it describes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import load
from tests.harness.emulators import running
from tests.harness.process import ROOT, environment
from tests.harness.server import Server
from tests.harness.valkey import Valkey
from tests.infra.dockerfile import read_dockerfile

SERVICES: dict[str, Any] = yaml.safe_load(
    (ROOT / "infra" / "compose.yaml").read_text()
)["services"]
SERVERS = ["server1", "server2"]


def variables(name: str) -> dict[str, str]:
    """Return the environment of a server: the image's and its own."""
    image = {
        key: value
        for one in read_dockerfile(ROOT / "Dockerfile")
        if one.name == "ENV" and one.stage == 1
        for key, _, value in (word.partition("=") for word in one.words)
        if key.startswith("STEADWIRE_")
    }
    found: dict[str, str] = image | SERVICES[name]["environment"]
    return found


def test_the_settings_are_known_and_the_servers_agree() -> None:
    own = {name: load(variables(name), {}) for name in [*SERVERS, "tables"]}
    assert own["server1"] == own["server2"] == own["tables"]
    assert own["server1"].store.backend == "dynamodb"
    for name in SERVERS:
        grace = float(SERVICES[name]["stop_grace_period"].removesuffix("s"))
        server = own[name].server
        assert grace > (server.drain_time or 0.0) + server.shutdown_timeout


def test_everything_waits_for_what_it_needs() -> None:
    """The table is emulated, the tables are made, the servers start."""
    assert SERVICES["tables"]["depends_on"] == {
        "table": {"condition": "service_healthy"}
    }
    made = {
        "tables": {"condition": "service_completed_successfully"},
        "valkey": {"condition": "service_healthy"},
    }
    assert [SERVICES[name]["depends_on"] for name in SERVERS] == [made] * 2
    assert variables("server1")["STEADWIRE_BROKER_URL"] == "redis://valkey:6379"
    assert SERVICES["valkey"]["healthcheck"]["test"] == ["CMD", "valkey-cli", "ping"]
    where = variables("tables")["STEADWIRE_DYNAMODB_ENDPOINT"]
    port = SERVICES["table"]["environment"]["GATEWAY_PORT"]
    assert where == f"http://table:{port}"
    assert f"('127.0.0.1', {port})" in SERVICES["table"]["healthcheck"]["test"][-1]


def test_it_is_open_to_this_machine_alone_and_cannot_write() -> None:
    for name in SERVERS:
        [port] = SERVICES[name]["ports"]
        assert re.fullmatch(r"127\.0\.0\.1:800\d:8000", port)
        assert SERVICES[name]["read_only"] is True
    assert re.search(r"@sha256:[0-9a-f]{64}$", SERVICES["valkey"]["image"])
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_versions_are_those_of_the_tests() -> None:
    inline = SERVICES["table"]["build"]["dockerfile_inline"]
    installed = (ROOT / "tests" / "tools" / "install").read_text()
    [version] = re.findall(r"ministack==\S+", inline)
    assert f'"{version}"' in installed
    [base] = [one for one in read_dockerfile(ROOT / "Dockerfile") if one.name == "ARG"]
    assert f"FROM {base.text.partition('=')[2]}\n" in inline


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Server]]:
    """Run the commands of the stack on this machine, with the emulators' addresses."""
    emulator = running("ministack")
    valkey = Valkey().start()
    own = {
        "STEADWIRE_BROKER_URL": valkey.url,
        "STEADWIRE_DYNAMODB_ENDPOINT": emulator.endpoint,
        "STEADWIRE_DYNAMODB_TABLE": emulator.settings().table,
    }
    made = subprocess.run(
        [sys.executable, "-m", "service", *SERVICES["tables"]["command"]],
        env=environment(variables("tables") | own),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    found = []
    for name in SERVERS:
        server = Server(tmp_path)
        server.settings = variables(name) | own | {"STEADWIRE_SERVER_HOST": "127.0.0.1"}
        server.key = server.settings["STEADWIRE_API_KEY"]
        found.append(server)
    yield found
    for server in found:
        server.close()
    valkey.kill()


@pytest.mark.slow
async def test_two_servers_share_the_table(servers: list[Server], channel: str) -> None:
    for server in servers:
        await server.start()
    one, other = servers
    async with one.api() as first, other.api() as second:
        client, _ = await one.join(channel)
        assert await first.publish(channel, "one") == 1
        assert await second.publish(channel, "other") == 2
        for expected in ("one", "other"):
            push = await client.push()
            assert push["pub"]["data"] == expected
        client.tcp.close()
    for server in servers:
        assert await server.terminate() == 0
