"""The Lambda entry point, as a cold start finds it; the e2e suite has the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.backends import GATEWAYS, INTEGRATION
from tests.harness.process import ROOT, environment

# What a cold start does not import: it takes longer than the rest, or is not needed.
ABSENT = (
    "ag_ui",
    "boto3",
    "click",
    "google.protobuf",
    "httpx",
    "hypercorn",
    "prometheus_client",
    "s3transfer",
    "service.connections.connection",
    "service.hub.hub",
    "service.protocol.protobuf",
    "service.stores.sqlite.store",
    "sqlite3",
    "uvloop",
)

# structlog imports rich where it is installed; a package for Lambda has what
# requirements.lock names, without it.
COLD_START = """
import sys
sys.modules["rich"] = None
import service.lambda_entry
print(*sys.modules)
"""


def _python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def variables() -> Iterator[dict[str, str]]:
    own = GATEWAYS["lambda"]()
    del own[INTEGRATION]
    yield {
        **own,
        "STEADWIRE_GATEWAY_ENDPOINT": "http://127.0.0.1:1/test",
        "STEADWIRE_GATEWAY_FUNCTION": "own",
    }


def _handled(variables: dict[str, str], *events: dict[str, Any]) -> list[Any]:
    """Return the answers to *events* in one environment."""
    code = (
        "import json, sys; from service.lambda_entry import handler\n"
        "for event in json.loads(sys.argv[1]): print(json.dumps(handler(event, None)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(events)],
        cwd=ROOT,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_cold_start_imports_only_what_it_needs(variables: dict[str, str]) -> None:
    """With everything opened, as in Lambda's init phase."""
    own = {**variables, "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand"}
    done = _python(COLD_START, **own)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert "service.gateway_runtime" in imported
    assert sorted(imported & set(ABSENT)) == []
    lock = (ROOT / "requirements.lock").read_text()
    assert not [each for each in ("rich", "boto3") if f"\n{each}==" in lock]


def test_it_does_not_start_without_a_gateway_or_a_way_in(
    variables: dict[str, str],
) -> None:
    own = {**variables, "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand"}
    missing = own | {
        "STEADWIRE_GATEWAY_ENDPOINT": "",
        "STEADWIRE_GATEWAY_FUNCTION": "",
    }
    done = _python("import service.lambda_entry", **missing)
    assert "SettingsError: the function needs gateway.endpoint" in done.stderr
    closed = own | {"STEADWIRE_ENVIRONMENT": "production"}
    done = _python("import service.lambda_entry", **closed)
    assert "has no way to know its clients" in done.stderr


def test_every_event_is_answered_so_that_the_gateway_writes_nothing(
    variables: dict[str, str],
) -> None:
    context = {"connectionId": "a=", "identity": {"sourceIp": "192.0.2.1"}}
    message = {
        "requestContext": {**context, "eventType": "MESSAGE"},
        "body": "no command",
    }
    gone = {"requestContext": {**context, "eventType": "DISCONNECT"}}
    schedule = {"detail-type": "Scheduled Event", "source": "aws.events", "detail": {}}
    hold = {"steadwire.deliver": {"channel": "nonsense"}}
    answers = _handled(variables, message, gone, schedule, hold, {"other": 1})
    assert [each["statusCode"] for each in answers] == [200] * 5


def test_a_connect_is_answered_with_status_and_subprotocol(
    variables: dict[str, str],
) -> None:
    def connect(**headers: str) -> dict[str, Any]:
        return {
            "requestContext": {
                "connectionId": "a=",
                "eventType": "CONNECT",
                "domainName": "api.example.org",
                "identity": {"sourceIp": "192.0.2.1"},
            },
            "headers": headers,
        }

    answers = _handled(
        variables,
        connect(),
        connect(**{"Sec-WebSocket-Protocol": "centrifuge-json"}),
        connect(**{"Sec-WebSocket-Protocol": "centrifuge-protobuf"}),
        connect(Origin="https://other.example.org"),
    )
    assert answers == [
        {"statusCode": 200, "headers": {}},
        {"statusCode": 200, "headers": {"Sec-WebSocket-Protocol": "centrifuge-json"}},
        {"statusCode": 400, "headers": {}},
        {"statusCode": 403, "headers": {}},
    ]


def test_hooks_in_python_decide(variables: dict[str, str], tmp_path: Any) -> None:
    (tmp_path / "own.py").write_text(
        "import os\n"
        "from service.core.hooks import ConnectResult, Handlers\n"
        "from service.lambda_entry import make_handler\n"
        "async def connect(event): return ConnectResult(user='ann')\n"
        "handler = make_handler(Handlers(connect=connect), os.environ)\n"
        "print(handler({'detail-type': 'Scheduled Event'}, None))\n"
    )
    own = {**variables, "STEADWIRE_ENVIRONMENT": "production"}
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = _python("import own", **{**own, "PYTHONPATH": path})
    assert done.stdout == "{'statusCode': 200}\n", done.stderr
