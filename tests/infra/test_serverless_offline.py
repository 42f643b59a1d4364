"""The function behind serverless-offline, a second emulator that we did not write.

It knows API Gateway and `@connections` in its own way (docs/serverless.md has a
table), and invokes the function asynchronously when it hands over a delivery.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.harness.backends import GATEWAYS, INTEGRATION
from tests.harness.ports import free_port
from tests.harness.process import TOOLS, environment, launched
from tests.harness.sdk import SdkClient
from tests.harness.tools import missing, node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KEY = "a-key-of-tests-that-is-long-enough"
READY = 120.0  # s until it listens
CHANNELS = {"allow_subscribe_for_client": True, "allow_publish_for_client": True}


class Offline(NamedTuple):
    """Ports of serverless-offline on 127.0.0.1."""

    http: int
    websocket: int


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offline]:
    modules = TOOLS / "offline" / "node_modules"
    if not (TOOLS / "offline.stamp").is_file():
        missing("serverless-offline", "tests/tools/install")
    folder = tmp_path_factory.mktemp("offline")
    (folder / "node_modules").symlink_to(modules)
    template = Path(__file__).with_name("offline") / "serverless.yml"
    (folder / "serverless.yml").write_bytes(template.read_bytes())
    (folder / "handler.py").write_text("from service.lambda_entry import handler\n")
    http, websocket, functions = (free_port() for _ in range(3))
    own = GATEWAYS["lambda"]()
    del own[INTEGRATION]
    variables = environment(
        {
            **own,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HTTP_PORT": str(http),
            "WEBSOCKET_PORT": str(websocket),
            "LAMBDA_PORT": str(functions),
            "SLS_TELEMETRY_DISABLED": "1",
            "SLS_NOTIFICATIONS_MODE": "off",
            "AWS_ENDPOINT_URL_LAMBDA": f"http://127.0.0.1:{functions}",
            "STEADWIRE_API_KEY": KEY,
            "STEADWIRE_GATEWAY_ENDPOINT": f"http://127.0.0.1:{websocket}",
            "STEADWIRE_GATEWAY_FUNCTION": "steadwire-dev-handler",
            "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(CHANNELS),
        }
    )
    program = modules / "serverless" / "bin" / "serverless.js"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            launched(node(), program, "offline"),
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        for port in (http, websocket, functions):
            _wait(port, process, folder / "log")
        yield Offline(http, websocket)
    finally:
        process.terminate()
        process.wait()
        print((folder / "log").read_text())


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 5.0).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"serverless-offline does not start:\n{log.read_text()}")


def publish(offline: Offline, channel: str, data: object) -> int:
    """Publish through the HTTP API; return the offset."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{offline.http}/api/publish",
        data=json.dumps({"channel": channel, "data": data}).encode(),
        headers={"x-api-key": KEY, "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60.0) as answer:
        offset: int = json.load(answer)["result"]["offset"]
    return offset


@pytest.mark.parametrize("sdk", ("js-5.8.0", "python-0.7.0"))
async def test_an_sdk_client_publishes_receives_and_recovers(
    offline: Offline, start_host: Callable[..., Any], sdk: str
) -> None:
    channel = f"offline-{sdk.partition('-')[0]}"
    host = await start_host(sdk)
    url = f"ws://127.0.0.1:{offline.websocket}"
    client = await SdkClient.create(host, url, min_delay=2.0, max_delay=2.0)
    await client.connect(60.0)
    await client.subscribe(channel, 30.0)
    await client.publish(channel, 1)
    assert await asyncio.to_thread(publish, offline, channel, 2) == 2
    await client.seen("publication", 2, 30.0)
    await client.cut()
    await client.seen("connecting", 2)
    for number in range(3, 6):
        assert await asyncio.to_thread(publish, offline, channel, number) == number
    await client.seen("subscribed", 2, 60.0)
    await client.seen("publication", 5, 30.0)
    found = client.events["publication"]
    assert [(each["offset"], each["data"]) for each in found] == [
        (number, number) for number in range(1, 6)
    ]
    await client.disconnect()
