"""`steadwire doctor --aws` on a stack in ministack: it finds what was changed there."""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import deploy_local
from infra.deploy_local import Deployed
from tests.cli.running import run
from tests.harness import emulators
from tests.harness.emulators import Emulator

pytestmark = pytest.mark.slow

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def aws() -> Iterator[Emulator]:
    """Return a ministack of this module's own."""
    emulator = emulators.ministack().start()
    yield emulator
    emulator.close()


@pytest.fixture
def stack(aws: Emulator, tmp_path: Path) -> Deployed:
    """Return a stack of the test's own; its function is never invoked."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as made:
        made.writestr("nothing.py", "")
    package = tmp_path / "nothing.zip"
    package.write_bytes(content.getvalue())
    return deploy_local.deploy(
        aws.endpoint,
        package,
        f"examined-{next(_numbers)}",
        Runtime="python3.13",
        AlarmEmail="",
    )


def examined(aws: Emulator, stack: str) -> tuple[int, list[str]]:
    """Return the exit status and the lines of the doctor."""
    result = run(
        "doctor", "--aws", stack, **aws.credentials, AWS_ENDPOINT_URL=aws.endpoint
    )
    lines = result.output.splitlines()
    return result.exit_code, [" ".join(each.split()) for each in lines]


def test_a_stack_as_it_was_deployed(aws: Emulator, stack: Deployed) -> None:
    """But for what ministack does not take from a template, and the first invocation.

    The latter marks the table as one of processes with leases.
    """
    deploy_local.client(aws.endpoint, "lambda").put_function_concurrency(
        FunctionName=stack.name, ReservedConcurrentExecutions=100
    )
    for api, stage in (
        (_api_id(stack), "live"),
        (stack.api.split("/")[-2], "$default"),
    ):
        _gateway(aws).update_stage(
            ApiId=api,
            StageName=stage,
            DefaultRouteSettings={
                "ThrottlingRateLimit": 1000.0,
                "ThrottlingBurstLimit": 2000,
            },
        )
    _backups(aws, stack, enabled=True)
    made = run(
        "tables",
        "create",
        **aws.credentials,
        STEADWIRE_STORE_BACKEND="dynamodb",
        STEADWIRE_DYNAMODB_REGION="us-east-1",
        STEADWIRE_DYNAMODB_ENDPOINT=aws.endpoint,
        STEADWIRE_DYNAMODB_TABLE=stack.outputs["TableName"],
        STEADWIRE_DYNAMODB_LEASES="true",
    )
    assert made.exit_code == 0, made.output
    status, lines = examined(aws, stack.name)
    assert status == 0, lines
    assert lines == [
        f"ok stack {stack.name} is CREATE_COMPLETE",
        "ok function as it should be",
        "ok schedule as it should be",
        "ok sockets as it should be",
        "ok api as it should be",
        "ok table as it should be",
        "note alarms 12 of 12 tell nobody",
        "mend it: set AlarmEmail",
        "ok logs as it should be",
    ]


def _timeout(aws: Emulator, stack: Deployed) -> None:
    deploy_local.client(aws.endpoint, "lambda").update_function_configuration(
        FunctionName=stack.name, Timeout=20
    )


def _variables(aws: Emulator, stack: Deployed, **changed: str | None) -> None:
    functions = deploy_local.client(aws.endpoint, "lambda")
    found = functions.get_function_configuration(FunctionName=stack.name)
    own = found["Environment"]["Variables"] | changed
    functions.update_function_configuration(
        FunctionName=stack.name,
        Environment={"Variables": {n: v for n, v in own.items() if v is not None}},
    )


def _concurrency(aws: Emulator, stack: Deployed) -> None:
    deploy_local.client(aws.endpoint, "lambda").put_function_concurrency(
        FunctionName=stack.name, ReservedConcurrentExecutions=0
    )


def _rule(aws: Emulator, stack: Deployed) -> None:
    events = deploy_local.client(aws.endpoint, "events")
    [rule] = [
        each["Name"]
        for each in events.list_rules()["Rules"]
        if each["Name"].startswith(stack.name)
    ]
    events.disable_rule(Name=rule)


def _gateway(aws: Emulator) -> Any:
    return deploy_local.client(aws.endpoint, "apigatewayv2")


def _api_id(stack: Deployed) -> str:
    return stack.socket.split("/")[-2]


def _route(aws: Emulator, stack: Deployed) -> None:
    _gateway(aws).create_route(ApiId=_api_id(stack), RouteKey="publish")


def _selection(aws: Emulator, stack: Deployed) -> None:
    _gateway(aws).update_api(
        ApiId=_api_id(stack), RouteSelectionExpression="$request.body.method"
    )


def _access_log(aws: Emulator, stack: Deployed) -> None:
    _gateway(aws).update_stage(
        ApiId=_api_id(stack),
        StageName="live",
        AccessLogSettings={
            "DestinationArn": "arn:aws:logs:us-east-1:000000000000:log-group:x",
            "Format": '{"query":"$context.requestOverride.querystring.token"}',
        },
    )


def _retention(aws: Emulator, stack: Deployed) -> None:
    function = deploy_local.client(aws.endpoint, "lambda").get_function_configuration(
        FunctionName=stack.name
    )
    deploy_local.client(aws.endpoint, "logs").delete_retention_policy(
        logGroupName=function["LoggingConfig"]["LogGroup"]
    )


def _backups(aws: Emulator, stack: Deployed, *, enabled: bool = False) -> None:
    deploy_local.client(aws.endpoint, "dynamodb").update_continuous_backups(
        TableName=stack.outputs["TableName"],
        PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": enabled},
    )


def _alarm(aws: Emulator, stack: Deployed) -> None:
    watch = deploy_local.client(aws.endpoint, "cloudwatch")
    [name] = [
        each["AlarmName"]
        for each in watch.describe_alarms(
            AlarmNamePrefix=f"{stack.name}-FunctionFails"
        )["MetricAlarms"]
    ]
    watch.set_alarm_state(AlarmName=name, StateValue="ALARM", StateReason="a test")


CHANGES: dict[str, tuple[Callable[[Emulator, Deployed], None], str]] = {
    "timeout": (_timeout, "problem function its timeout is 20 s"),
    "concurrency": (_concurrency, "problem function no invocation is let through"),
    "a short key": (
        lambda aws, stack: _variables(
            aws, stack, STEADWIRE_TOKEN_HMAC_SECRET_KEY="hunter2"
        ),
        "problem function it cannot start: STEADWIRE_TOKEN_HMAC_SECRET_KEY is wrong",
    ),
    "a setting misspelt": (
        lambda aws, stack: _variables(aws, stack, STEADWIRE_APIKEY="hunter2"),
        "problem function it cannot start: STEADWIRE_APIKEY is wrong",
    ),
    "another endpoint": (
        lambda aws, stack: _variables(
            aws, stack, STEADWIRE_GATEWAY_ENDPOINT="https://other.example.org/live"
        ),
        "problem function gateway.endpoint is not that of this stack",
    ),
    "no API key": (
        lambda aws, stack: _variables(aws, stack, STEADWIRE_API_KEY=None),
        "note function api.key is not set",
    ),
    "a rule that is off": (_rule, "problem schedule no rule invokes the function"),
    "another interval": (
        lambda aws, stack: _variables(
            aws, stack, STEADWIRE_GATEWAY_SWEEP_INTERVAL="30"
        ),
        "problem schedule rate(1 minute) is not gateway.sweep_interval (30 s)",
    ),
    "a route too many": (_route, "problem sockets publish: it has to have"),
    "route selection": (_selection, "problem sockets its route selection is"),
    "access log": (_access_log, "problem sockets the access log of stage live may"),
    "retention": (_retention, "note logs"),
    "backups": (_backups, "note table it has no point-in-time recovery"),
    "an alarm": (_alarm, "problem alarms"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_and_no_secret_is_shown(
    aws: Emulator, stack: Deployed, change: str
) -> None:
    make, expected = CHANGES[change]
    make(aws, stack)
    status, lines = examined(aws, stack.name)
    [at] = [n for n, line in enumerate(lines) if line.startswith(expected)]
    assert lines[at + 1].startswith("mend it: ")
    assert status == 1  # the table is not marked yet
    text = "\n".join(lines)
    assert "hunter2" not in text
    assert stack.token_key not in text and stack.api_key not in text


def test_a_stack_that_does_not_exist(aws: Emulator) -> None:
    status, lines = examined(aws, "other")
    assert status == 1
    assert lines[0] == (
        "problem stack cannot be examined: DescribeStacks says ValidationError"
    )
