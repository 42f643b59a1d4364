"""The serverless template, deployed into ministack, with the official SDKs before it.

The zip of `make package` runs there as the function, the table, the secrets, the
schedule and both APIs are ministack's. What ministack does otherwise than AWS, or does
not do, is named in docs/serverless.md, and covered by our own emulator (tests/e2e,
tests/chaos, tests/dev_gateway).
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest

from infra import deploy_local
from infra.deploy_local import Deployed
from infra.package import UNUSED, package
from tests.faultproxy.proxy import FaultProxy
from tests.harness import emulators
from tests.harness.emulators import Emulator
from tests.harness.raw import Closed, RawClient
from tests.harness.sdk import SdkClient
from tests.harness.tokens import connection

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SDKS = ("js-5.8.0", "python-0.7.0")

CONFIG = """
[channels.without_namespace]
allow_subscribe_for_client = true
allow_publish_for_client = true
"""


@pytest.fixture(scope="module")
def zipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the package of the function, for this machine, with a settings file."""
    folder = tmp_path_factory.mktemp("package")
    config = folder / "own.toml"
    config.write_text(CONFIG)
    path, notes = package("x86_64", folder, config, here=True)
    assert notes == [], "a package with every extension"
    return path


@pytest.fixture(scope="module")
def aws() -> Iterator[Emulator]:
    """Return a ministack of this module's own."""
    emulator = emulators.ministack().start()
    yield emulator
    emulator.close()


@pytest.fixture(scope="module")
def stack(aws: Emulator, zipped: Path) -> Deployed:
    return deploy_local.deploy(aws.endpoint, zipped, "rehearsal")


@pytest.fixture
async def proxy(aws: Emulator) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(aws.port) as proxy:
        yield proxy


def call(stack: Deployed, method: str, **fields: object) -> dict[str, Any]:
    """Call the server API through the HTTP API."""
    request = urllib.request.Request(
        f"{stack.api}/api/{method}",
        data=json.dumps(fields).encode(),
        headers={"x-api-key": stack.api_key, "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60.0) as answer:
        found: dict[str, Any] = json.load(answer)
    return found["result"]


def token(stack: Deployed, user: str) -> str:
    return jwt.encode({"sub": user}, stack.token_key, "HS256")


def test_two_packages_of_the_same_sources_are_equal(
    zipped: Path, tmp_path: Path
) -> None:
    """Made in other folders, at other times, by another process."""
    config = tmp_path / "steadwire.toml"
    config.write_text(CONFIG)
    options = ["--here", "--config", config, "--to", tmp_path]
    done = subprocess.run(
        [sys.executable, "infra/package.py", *options],
        cwd=deploy_local.TEMPLATE.parents[1],
        capture_output=True,
        text=True,
        check=True,
        timeout=400,
    )
    again = tmp_path / zipped.name
    assert again.read_bytes() == zipped.read_bytes()
    assert f"{again}: " in done.stdout and " MiB unpacked" in done.stdout
    with zipfile.ZipFile(again) as made:
        names = made.namelist()
        assert names == sorted(names)
        assert {each.date_time for each in made.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert "steadwire.toml" in names
    compiled = [name for name in names if name.endswith(".pyc")]
    assert len(compiled) == len([name for name in names if name.endswith(".py")])


def test_the_package_alone_can_handle_an_event(zipped: Path, tmp_path: Path) -> None:
    """With nothing beside it but Python: it has all that it imports, compiled."""
    with zipfile.ZipFile(zipped) as made:
        made.extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import service.lambda_entry, service.http.function_routes\n"
        "import service.http.hooks_proxy, service.auth.jwks, importlib.metadata\n"
        "compiled = sorted(m for m in sys.modules if m.startswith('_speedups.'))\n"
        "print(importlib.metadata.version('steadwire'), *compiled)\n"
        "origins = [m.__spec__.cached or '' for m in sys.modules.values()"
        " if m.__name__.startswith('service')]\n"
        "assert all(o.startswith(sys.argv[1]) for o in origins), origins\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    version, *compiled = done.stdout.split()
    assert version == "0.1.0"
    assert {"_speedups.json_c", "_speedups.rtt_c"} <= set(compiled)


def test_the_package_has_nothing_that_a_function_does_not_use(zipped: Path) -> None:
    """Nor what the lock's extras bring; and what is left out is in the lock."""
    lock = (deploy_local.TEMPLATE.parents[1] / "requirements.lock").read_text()
    assert set(UNUSED.split()) <= set(re.findall(r"^([a-z0-9-]+)==", lock, re.M))
    with zipfile.ZipFile(zipped) as made:
        folders = {name.partition("/")[0] for name in made.namelist()}
        size = sum(each.file_size for each in made.infolist())
    extras = {"redis", "ag_ui", "pydantic", "pydantic_core", "hypercorn", "uvloop"}
    assert not extras & folders
    assert size < 48 * 2**20, f"{size / 2**20:.1f} MiB unpacked"


def test_another_machine_has_a_package_without_extensions(tmp_path: Path) -> None:
    """And is told so: on arm64 interpreted code takes their place."""
    path, notes = package("arm64", tmp_path, here=True)
    [note] = notes
    assert "without compiled extensions" in note and "aarch64" in note
    with zipfile.ZipFile(path) as made:
        extensions = [name for name in made.namelist() if name.endswith(".so")]
    assert extensions and not [n for n in extensions if n.startswith("_speedups/")]
    assert all("aarch64" in n or "-" not in Path(n).name for n in extensions)


@pytest.mark.parametrize("sdk", SDKS)
async def test_an_sdk_client_publishes_receives_and_recovers(
    stack: Deployed,
    proxy: FaultProxy,
    start_host: Callable[..., Any],
    sdk: str,
) -> None:
    url = f"ws://127.0.0.1:{proxy.port}{urlsplit(stack.socket).path}"
    channel = f"rehearsal-{sdk.partition('-')[0]}"
    host = await start_host(sdk)
    client = await SdkClient.create(host, url, token=token(stack, "ann"))
    await client.connect(60.0)
    await client.subscribe(channel, 30.0)
    await client.publish(channel, 1)
    assert (await asyncio.to_thread(call, stack, "publish", channel=channel, data=2))[
        "offset"
    ] == 2
    await client.seen("publication", 2, 30.0)

    proxy.hold()  # nobody comes back before all is published
    proxy.reset()
    await client.seen("connecting", 2)
    for number in range(3, 7):
        await asyncio.to_thread(call, stack, "publish", channel=channel, data=number)
    await proxy.release()
    await client.seen("subscribed", 2, 60.0)
    assert client.events["subscribed"][1]["recovered"] is True
    await client.seen("publication", 6, 30.0)
    await client.publish(channel, 7)
    found = await client.seen("publication", 7, 30.0)
    assert [(each["offset"], each["data"]) for each in found] == [
        (number, number) for number in range(1, 8)
    ]
    here = await asyncio.to_thread(call, stack, "connections", user="ann")
    assert len(here["connections"]) == 1
    await client.disconnect()


async def test_who_shows_no_token_is_not_let_in(stack: Deployed, aws: Emulator) -> None:
    """The keys of the template's secrets are those that the function has."""
    async with await RawClient.open(
        aws.port, path=urlsplit(stack.socket).path
    ) as client:
        client.at_gateway = True
        with pytest.raises(Closed) as closed:
            await client.request(connect={"token": connection("ann")})
        assert closed.value.code == 3500
    request = urllib.request.Request(f"{stack.api}/api/info", data=b"{}")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30.0)
    assert refused.value.code == 401
    refused.value.close()


async def test_the_schedule_sweeps(stack: Deployed, aws: Emulator) -> None:
    """A socket on which nobody connects is closed by it, and by nothing else."""
    async with await RawClient.open(
        aws.port, path=urlsplit(stack.socket).path
    ) as client:
        message = await client.message(within=150.0)
    assert message["push"]["disconnect"]["code"] == 3502
