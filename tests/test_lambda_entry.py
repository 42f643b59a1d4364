"""The Lambda entry point, as a cold start finds it; the e2e suite has the rest."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.harness.backends import GATEWAYS, INTEGRATION
from tests.harness.process import ROOT, environment

# What a cold start does not import: it takes longer than the rest, or is not needed.
ABSENT = (
    "ag_ui",
    "boto3",
    "click",
    "falcon",
    "google.protobuf",
    "httpx",
    "hypercorn",
    "prometheus_client",
    "pydantic",
    "redis",
    "s3transfer",
    "service.connections.connection",
    "service.hub.hub",
    "service.protocol.protobuf",
    "service.stores.sqlite.store",
    "sqlite3",
    "uvloop",
)

# Of what is not Python's own, all that it imports.
PRESENT = {
    "_cffi_backend",
    "botocore",
    "certifi",
    "cryptography",
    "dateutil",
    "h11",
    "jmespath",
    "jwt",
    "msgspec",
    "re2",
    "six",
    "structlog",
    "typing_extensions",
    "ujson",
    "urllib3",
}

# structlog imports rich and greenlet where they are installed; a package for Lambda has
# what requirements.lock names, without them.
COLD_START = """
import sys
before = set(sys.modules)
for hidden in ("rich", "greenlet"):
    sys.modules[hidden] = None
    before.add(hidden)
import service.lambda_entry
print(*(
    name for name in sys.modules.keys() - before
    if getattr(sys.modules[name], "__spec__", None)
))
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
    packages = {each.partition(".")[0] for each in imported}
    foreign = packages - sys.stdlib_module_names - {"service", "_speedups"}
    assert foreign == PRESENT
    lock = (ROOT / "requirements.lock").read_text()
    assert not [each for each in ("rich", "greenlet", "boto3") if f"\n{each}==" in lock]


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


def test_the_log_is_written_before_an_event_is_answered(
    variables: dict[str, str],
) -> None:
    """An environment may be frozen then, and never be thawed."""
    code = (
        "import os; from service.lambda_entry import handler\n"
        "handler({'other': 1}, None); os._exit(0)"
    )
    done = _python(code, **variables)
    assert '"event": "an event of an unknown kind"' in done.stderr.splitlines()[-1]


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


def test_an_opening_that_fails_leaves_nothing_open(variables: dict[str, str]) -> None:
    code = (
        "import asyncio, gc, os, threading\n"
        "from service.core.errors import StartupError\n"
        "from service.core.hooks import Handlers\n"
        "from service.lambda_entry import make_handler\n"
        "try: make_handler(Handlers(), os.environ)\n"
        "except StartupError as error: print(error)\n"
        "every = gc.get_objects()\n"
        "loops = [o for o in every if isinstance(o, asyncio.AbstractEventLoop)]\n"
        "names = sorted(each.name for each in threading.enumerate())\n"
        "print(all(o.is_closed() for o in loops), *names)"
    )
    done = _python(code, **{**variables, "STEADWIRE_DYNAMODB_TABLE": "absent"})
    assert "absent does not exist" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "True MainThread log"


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


def request(
    method: str, path: str, body: str = "", key: str = "", **more: Any
) -> dict[str, Any]:
    """An event of an HTTP API, payload 2.0."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"host": "api.example.org", **({"x-api-key": key} if key else {})},
        "requestContext": {
            "domainName": "api.example.org",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "tests",
            },
            "stage": "$default",
        },
        "body": body,
        "isBase64Encoded": False,
        **more,
    }


KEY = "a-key-of-tests-that-is-long-enough"
KEPT = json.dumps(
    {
        "allow_subscribe_for_client": True,
        "allow_subscribe_for_anonymous": True,
        "history_size": 9,
        "history_ttl": "60s",
    }
)


def test_requests_of_an_http_api_are_answered_by_the_server_api(
    variables: dict[str, str],
) -> None:
    """Its answers are those of a server, but for what needs a resident process."""
    publish = json.dumps({"channel": "room", "data": {"n": 1}})
    history = json.dumps({"channel": "room", "limit": 10})
    binary = base64.b64encode(publish.encode()).decode()
    staged = request("POST", "/prod/api/history", history, KEY)
    staged["requestContext"]["stage"] = "prod"
    answers = _handled(
        {
            **variables,
            "STEADWIRE_API_KEY": KEY,
            "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": KEPT,
            "AWS_ENDPOINT_URL_LAMBDA": "http://127.0.0.1:1",
        },
        request("GET", "/health/ready"),
        request("POST", "/api/publish", publish),
        request("POST", "/api/publish", publish, KEY),
        request("POST", "/api/publish", binary, KEY, isBase64Encoded=True),
        staged,
        request("POST", "/api/info", "{}", KEY),
        request("POST", "/api/drain", "{}", KEY),
        request("POST", "/api/channels", "{}", KEY),
        request("POST", "/api/publish", "%", KEY, isBase64Encoded=True),
        request("GET", "/metrics", "", KEY),
        request("GET", "/api/openapi.json"),
    )
    statuses = [each["statusCode"] for each in answers]
    assert statuses == [200, 401, 200, 200, 200, 200, 200, 200, 400, 404, 200]
    assert json.loads(answers[0]["body"]) == {"status": "ready"}
    first, second = (json.loads(each["body"])["result"] for each in answers[2:4])
    assert (first["offset"], second["offset"]) == (1, 2)
    assert answers[2]["headers"]["content-type"] == "application/json"
    kept = json.loads(answers[4]["body"])["result"]
    assert [each["data"] for each in kept["publications"]] == [{"n": 1}] * 2
    for each in answers[5:8]:
        assert json.loads(each["body"])["error"]["code"] == 108
    assert "/api/publish" in json.loads(answers[10]["body"])["paths"]


class _Aws(ThreadingHTTPServer):
    """Lambda's API and `@connections`: everything is taken, and noted."""

    def __init__(self) -> None:
        noted = self.noted = list[tuple[str, str]]()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                size = int(self.headers["content-length"])
                noted.append((self.path, self.rfile.read(size).decode()))
                self.send_response(202 if "functions" in self.path else 200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def aws() -> Iterator[_Aws]:
    with _Aws() as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server
        server.shutdown()
        serving.join()


def test_a_publish_over_http_is_delivered_by_another_invocation(
    variables: dict[str, str], aws: _Aws
) -> None:
    """Its caller has the position before anything is posted to a subscriber."""
    own = {
        **variables,
        "STEADWIRE_API_KEY": KEY,
        "STEADWIRE_GATEWAY_ENDPOINT": f"{aws.url}/test",
        "AWS_ENDPOINT_URL_LAMBDA": aws.url,
        "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": KEPT,
    }
    socket = {"connectionId": "b=", "identity": {"sourceIp": "192.0.2.1"}}

    def message(body: str) -> dict[str, Any]:
        return {"requestContext": {**socket, "eventType": "MESSAGE"}, "body": body}

    connect = {"requestContext": {**socket, "eventType": "CONNECT"}, "headers": {}}
    publish = json.dumps({"channel": "news", "data": 7})
    answers = _handled(
        own,
        connect,
        message('{"id":1,"connect":{}}'),
        message('{"id":2,"subscribe":{"channel":"news"}}'),
        request("POST", "/api/publish", publish, KEY),
    )
    assert json.loads(answers[3]["body"])["result"]["offset"] == 1
    paths = [path for path, _ in aws.noted]
    posted = "/test/@connections/b%3D"
    invoked = "/2015-03-31/functions/own/invocations"
    assert paths == [posted, posted, invoked]
    assert '"subscribe"' in aws.noted[1][1]
    _handled(own, json.loads(aws.noted[2][1]))
    assert [path for path, _ in aws.noted[3:]] == [posted]
    assert json.loads(aws.noted[3][1])["push"]["pub"] == {"data": 7, "offset": 1}
