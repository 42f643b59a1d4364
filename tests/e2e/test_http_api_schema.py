"""The server API against its own OpenAPI document, fuzzed by schemathesis."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.harness.fixtures import server_with
from tests.harness.process import environment, launched
from tests.harness.server import Server

SEED = int(os.environ.get("SCHEMATHESIS_SEED", "20261122"))

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)

METHODS = "^/api/[a-z_]+$"
# Without the endless stream, and bodies that schemathesis cannot write.
RUNS = "^/agui/(?!threads/.*/events$)|/control$"

NAMESPACES = json.dumps([{"name": "plain"}, {"name": "present", "presence": True}])


# A key for each scope, an expired one, a wrong one, and no key; in the header
# and in Authorization. (test_http_api_keys has the query.)
GRANTS = {
    "publisher": 'publish = ["plain"]',
    "reader": "read = true",
    "admin": "administer = true",
    "ended": "read = true\nnot_after = 1000",
}
CREDENTIALS = {
    "none": (),
    "wrong": ("--header", "X-API-Key: key-of-nobody-0123456789"),
    "publisher": ("--header", "X-API-Key: key-of-publisher-0123456789"),
    "reader": ("--header", "Authorization: apikey key-of-reader-0123456789"),
    "admin": ("--header", "Authorization: apikey key-of-admin-0123456789"),
    "ended": ("--header", "X-API-Key: key-of-ended-0123456789"),
}


def answering(mode: str, **more: str) -> Any:
    """Return a fixture of a server with that error mode, and the keys of `GRANTS`."""

    def settings(request: pytest.FixtureRequest) -> dict[str, str]:
        keys = request.getfixturevalue("tmp_path_factory").mktemp("keys") / "keys.toml"
        entries = [
            f'[{each}]\nkey = "key-of-{each}-0123456789"\n{grants}\n'
            for each, grants in GRANTS.items()
        ]
        keys.write_text("".join(entries))
        return {
            "STEADWIRE_API_KEYS_FILE": str(keys),
            "STEADWIRE_API_ERROR_MODE": mode,
            "STEADWIRE_CHANNELS_NAMESPACES": NAMESPACES,
            **more,
        }

    return server_with(settings)


with_objects = answering("object")
with_statuses = answering("transport")
with_runs = answering("object")  # the methods drain theirs
guessed_at = answering("transport", STEADWIRE_LIMITS_FAILURES_PER_ADDRESS="2")


@pytest.fixture(
    params=["object", pytest.param("transport", marks=pytest.mark.slow)],
)
def server(request: pytest.FixtureRequest) -> Server:
    names = {"object": "with_objects", "transport": "with_statuses"}
    server: Server = request.getfixturevalue(names[request.param])
    return server


async def fuzz(
    server: Server,
    directory: Path,
    examples: int,
    credential: Sequence[str] = (),
    without: Collection[str] = (),
    phases: str = "coverage,fuzzing",
    paths: str = METHODS,
) -> None:
    """Fail with schemathesis's report if the server broke its own description.

    Args:
        server: The server.
        directory: Where to run.
        examples: Count for each method.
        credential: Options that show one; the key of the settings by default.
        without: Checks that are not made.
        phases: Of schemathesis.
        paths: A pattern of those that are called.
    """
    print(f"seed {SEED}, set SCHEMATHESIS_SEED for another")
    checks = [check for check in CHECKS if check not in without]
    credential = credential or ("--header", f"X-API-Key: {server.key}")
    more: list[str] = []
    if server.settings["STEADWIRE_API_ERROR_MODE"] == "transport":
        # Only here has a refusal a status; a batch has replies instead.
        if "negative_data_rejection" not in without:
            checks.append("negative_data_rejection")
        more = ["--exclude-path", "/api/batch"]
    process = await asyncio.create_subprocess_exec(
        *launched(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{server.api_url}/openapi.json",
        *credential,
        *("--seed", str(SEED)),
        *("--max-examples", str(examples)),
        *("--phases", phases),
        *("--checks", ",".join(checks)),
        *("--generation-database", "none"),
        *more,
        *("--include-path-regex", paths),
        cwd=directory,
        env=environment({"NO_COLOR": "1"}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    assert "No issues found" in text or "0 failures" in text or " passed" in text, text
    assert server.running
    # Nothing that the fuzzer sent is one of the faults we do not know.
    assert "failed" not in server.output()


async def test_server_keeps_to_its_description(server: Server, tmp_path: Path) -> None:
    await fuzz(server, tmp_path, 10)


async def test_server_keeps_to_its_description_of_runs(
    with_runs: Server, tmp_path: Path
) -> None:
    # Everybody may run agents here, so a request without credentials is one more.
    without = ("ignored_auth",)
    await fuzz(with_runs, tmp_path, 10, without=without, paths=RUNS)


# The first two are answered as a wrong one; the others may call more than a publisher.
SLOW = ("none", "ended", "reader", "admin")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(each, marks=[pytest.mark.slow] if each in SLOW else [])
        for each in CREDENTIALS
    ],
)
async def test_server_keeps_to_its_description_whoever_calls(
    with_statuses: Server, tmp_path: Path, name: str
) -> None:
    credential = CREDENTIALS[name] or ("--header", "X-Nothing: x")
    # Bad data is refused with 401 or 403 here, before it is looked at.
    without = ("negative_data_rejection", "ignored_auth")
    await fuzz(with_statuses, tmp_path, 3, credential, without, "fuzzing")


async def test_server_keeps_to_its_description_under_guesses(
    guessed_at: Server, tmp_path: Path
) -> None:
    without = ("negative_data_rejection", "ignored_auth")
    await fuzz(guessed_at, tmp_path, 1, CREDENTIALS["wrong"], without, "fuzzing")
    async with guessed_at.api() as api:
        answer = await api.request("POST", "/api/info", b"{}", {"X-API-Key": "wrong"})
    assert answer.status == 429
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_server_keeps_to_its_description_for_long(
    server: Server, tmp_path: Path
) -> None:
    await fuzz(server, tmp_path, 500)


async def test_document_describes_every_route(server: Server) -> None:
    async with server.api() as api:
        response = await api.request("GET", "/api/openapi.json")
        assert response.status == 200
        assert response.headers["content-type"].startswith("application/json")
        document = response.json
    assert document["openapi"] == "3.1.0"
    methods = {p: item for p, item in document["paths"].items() if "{" not in p}
    assert {path.removeprefix("/api/") for path in methods} == {
        "publish",
        "broadcast",
        "subscribe",
        "unsubscribe",
        "connections",
        "disconnect",
        "refresh",
        "ticket",
        "revoke_token",
        "invalidate_user_tokens",
        "erase",
        "drain",
        "presence",
        "presence_stats",
        "history",
        "history_remove",
        "channels",
        "info",
        "rpc",
        "batch",
    }
    for path, item in methods.items():
        statuses = set(item["post"]["responses"])
        assert {"200", "400", "401", "403", "413", "429", "500"} <= statuses, path
    history = document["paths"]["/api/history"]["post"]["responses"]
    assert set(history) == {
        *("200", "400", "401", "403", "404", "413", "416", "429", "500")
    }
