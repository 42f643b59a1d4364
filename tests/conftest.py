"""Fixtures for all tests: servers, clients, stores, emulators."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.harness import emulators
from tests.harness.api import Api
from tests.harness.backends import ALL, GATEWAYS, PAIRS, Backend
from tests.harness.emulators import Emulator
from tests.harness.fixtures import server_with
from tests.harness.gateway import server_of
from tests.harness.js import start_js
from tests.harness.py import start_python
from tests.harness.sdk import Host, SdkClient
from tests.harness.server import Server, opened
from tests.harness.sockets import close_all
from tests.harness.valkey import close_shared
from tests.requirements.rows import MARKED, marked

# No deadlines: machines are shared. In continuous integration the examples are the same
# in each run, so that a failure repeats; elsewhere they are random, and a failure
# prints how to repeat it.
hypothesis.settings.register_profile(
    "steadwire",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
)
hypothesis.settings.load_profile("steadwire")

SDKS = ("js-5.8.0", "python-0.7.0", "js-5.5.3", "python-0.4.4")


@pytest.hookimpl(tryfirst=True)  # before -m and -k leave tests out
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Keep which tests show which requirements, and refuse wrong markers."""
    items[:] = [item for item in items if not _cannot_hold(item)]
    config.stash[MARKED] = marked(items)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Spare the collector what is there for as long as the tests run."""
    gc.disable()  # to look through it while it grows takes a third of the time
    try:
        result: None = yield
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
    return result


# Of old SDKs, what a gateway cannot keep from them: see docs/serverless.md.
NOT_OF_OLD = {
    "js-5.5.3": ("test_unsubscribe_directly_followed_by_subscribe_is_no_error",),
    "python-0.4.4": (
        "test_unsubscribe_directly_followed_by_subscribe_is_no_error",
        "test_every_row_of_the_table",
        "test_disconnect_for_good",
        "test_disconnect_and_come_back",
    ),
}


def _cannot_hold(item: pytest.Item) -> bool:
    """Tell whether a gateway cannot do what the test asks of it (docs/serverless.md).

    Two processes can, but are not asked with old SDKs, nor in protobuf: what differs
    with the number of processes is below both.

    tests/e2e/test_gateway.py shows what happens instead.
    """
    params = getattr(getattr(item, "callspec", None), "params", {})
    if params.get("backend") in PAIRS:
        return params.get("make_client", "js-5.8.0") not in ("js-5.8.0", "python-0.7.0")
    if params.get("backend") not in GATEWAYS:
        return False
    if params.get("framing"):
        return True  # frames are the gateway's
    client = str(params.get("make_client", ""))
    left_out = NOT_OF_OLD.get(client, ())
    return "protobuf" in client or item.name.startswith(left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:
    """Show what the servers of a failed test wrote."""
    report: Any = yield
    if report.failed:
        for server in opened:
            report.sections.append((f"server on port {server.port}", server.output()))
    return report


@pytest.fixture(scope="module", autouse=True)
def nothing_left_open() -> Iterator[None]:
    """Fail in the module that left a transport open, not in what the collector ends."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def no_socket_left() -> Iterator[None]:
    """Close the sockets that a failed test left open."""
    yield
    close_all()


@pytest.fixture(scope="session", autouse=True)
def no_emulator_left() -> Iterator[None]:
    """End the emulators of DynamoDB, and the broker, that tests have started."""
    yield
    emulators.close_all()
    close_shared()


@pytest.fixture(scope="session")
def ministack() -> Emulator:
    """Return the emulator ministack: it has transactions."""
    return emulators.running("ministack")


@pytest.fixture(scope="session")
def dynalite() -> Emulator:
    """Return the emulator dynalite: its capacity units are exact."""
    return emulators.running("dynalite")


@pytest.fixture(scope="session")
def moto() -> Emulator:
    """Return the emulator moto: it is right with one call at a time."""
    return emulators.running("moto")


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> Backend:
    """Return what gives a server a fresh store; see `backends` for other ones."""
    return ALL[getattr(request, "param", "sqlite")]


@pytest.fixture(scope="module")
def framing() -> dict[str, str]:
    """Return settings of how WebSockets are framed; see `framings` for both."""
    return {}


# Of a server with default settings; a module may have another in its place.
server = server_with()


@pytest.fixture
def make_server(
    tmp_path: Path, backend: Backend, framing: dict[str, str]
) -> Iterator[Callable[..., Server]]:
    """Make servers of the test's own; arguments as for `Server`, without directory."""
    made: list[Server] = []

    def make(settings: Mapping[str, str] | None = None, **options: Any) -> Server:
        directory = tmp_path / f"server{len(made)}"
        directory.mkdir()
        variables = {**backend(), **framing, **(settings or {})}
        server = server_of(directory, variables, **options)
        made.append(server)
        return server

    yield make
    for server in made:
        server.close()


@pytest.fixture
def own_server(make_server: Callable[..., Server]) -> Server:
    """Return a server of the test's own, with default settings."""
    return make_server().start_blocking()


@pytest.fixture
async def api(server: Server) -> AsyncIterator[Api]:
    """Return a client of the HTTP API of `server`."""
    async with server.api() as api:
        yield api


@pytest.fixture
async def start_host() -> AsyncIterator[Callable[..., Any]]:
    """Start hosts of SDK clients by the names in `SDKS`."""
    hosts: list[Host] = []

    async def start(name: str, *, own_process: bool = False) -> Host:
        language, _, version = name.partition("-")
        host: Host
        if language == "js":
            host = await start_js(version)
        else:
            host = await start_python(version, own_process=own_process)
        hosts.append(host)
        return host

    yield start
    for host in hosts:
        await host.close()


# One in protobuf is enough: the session and the hub do not see the difference.
# tests/e2e/test_protobuf_sdk.py has all of them.
@pytest.fixture(params=(*SDKS, "js-5.8.0 protobuf"))
async def make_client(
    request: pytest.FixtureRequest, start_host: Callable[..., Any]
) -> Callable[..., Any]:
    """Make clients of one SDK, not connected yet; once for each SDK and protocol."""
    name, _, form = request.param.partition(" ")
    host = await start_host(name)

    async def make(url: str, **options: Any) -> SdkClient:
        return await SdkClient.create(host, url, protobuf=form == "protobuf", **options)

    return make


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    """Return a channel name that no other test uses."""
    return f"e2e-{name_of(request)}"


@pytest.fixture
def thread(request: pytest.FixtureRequest) -> str:
    """Return the name of a thread that no other test uses."""
    return name_of(request)[:100]


def name_of(request: pytest.FixtureRequest) -> str:
    """Return the test's name in letters, digits and hyphens."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)
