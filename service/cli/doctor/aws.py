"""Examination of a stack of ``infra/serverless.yaml``, as it is deployed.

It reads settings through the APIs of AWS and changes nothing. Variables of the function
are read, and never shown: what is wrong with one is said by its name.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session

from service.cli.doctor.finding import NOTE, OK, PROBLEM, Finding
from service.core.clock import SystemClock
from service.core.errors import SettingsError, SteadwireError
from service.settings import Settings, load

__all__ = ["examine_stack"]

ROUTES = {"$connect", "$default", "$disconnect"}
SELECTION = "$request.body.action"
ANSWER = 29  # s; the gateway gives an integration up after them
OLDEST = (3, 12)  # google-re2 needs the C library of its runtime
OUTPUTS = (
    "SocketAddress",
    "ApiAddress",
    "CallbackEndpoint",
    "FunctionName",
    "TableName",
)

_DEPLOY = "deploy infra/serverless.yaml again (docs/serverless.md)"
_QUERY = re.compile(r"querystring|request\.header|\.path\b", re.IGNORECASE)
_SECONDS = {"minute": 60, "hour": 3600, "day": 86400}


class _Stack(NamedTuple):
    name: str
    outputs: dict[str, str]
    call: Callable[..., Any]

    @property
    def sockets(self) -> tuple[str, str]:
        """The id of the WebSocket API, and its stage."""
        *_, first, stage = self.outputs["CallbackEndpoint"].split("/")
        return first.partition(".")[0], stage

    @property
    def api(self) -> str:
        """The id of the HTTP API."""
        return self.outputs["ApiAddress"].rpartition("/")[2].partition(".")[0]


def examine_stack(name: str) -> Iterator[Finding]:
    """Examine the stack *name*, with credentials and Region as every SDK finds them."""
    session = Session()

    def call(service: str, operation: str, **parameters: object) -> Any:
        if service not in clients:
            clients[service] = session.create_client(service)
        return getattr(clients[service], operation)(**parameters)

    clients: dict[str, Any] = {}
    try:
        [found] = call("cloudformation", "describe_stacks", StackName=name)["Stacks"]
    except (BotoCoreError, ClientError) as error:
        yield _failed("stack", error)
        return
    status = found["StackStatus"]
    good = status.endswith("_COMPLETE") and "ROLLBACK" not in status
    yield Finding(
        OK if good else PROBLEM,
        "stack",
        f"{name} is {status}",
        "" if good else "its events say why: aws cloudformation describe-stack-events",
    )
    given = found.get("Outputs", ())
    outputs = {each["OutputKey"]: each["OutputValue"] for each in given}
    if missing := [each for each in OUTPUTS if each not in outputs]:
        text = f"it has no output {', '.join(missing)}: it is another template's"
        yield Finding(PROBLEM, "stack", text, _DEPLOY)
        return
    stack = _Stack(name, outputs, call)
    for subject, examine in (
        ("function", _function),
        ("schedule", _schedule),
        ("sockets", _sockets),
        ("api", _api),
        ("table", _table),
        ("alarms", _alarms),
        ("logs", _logs),
    ):
        try:
            findings = list(examine(stack))
        except (BotoCoreError, ClientError) as error:
            yield _failed(subject, error)
        else:
            yield from findings or [Finding(OK, subject, "as it should be")]


def _failed(subject: str, error: Exception) -> Finding:
    """Return that a call failed; messages of AWS may show what was sent."""
    reason = type(error).__name__
    if isinstance(error, ClientError):
        code = error.response.get("Error", {}).get("Code", reason)
        reason = f"{error.operation_name} says {code}"
    remedy = "see the name, the Region, and that these credentials may read it"
    return Finding(PROBLEM, subject, f"cannot be examined: {reason}", remedy)


def _settings(stack: _Stack) -> tuple[dict[str, Any], Settings | None, list[str]]:
    """Return the function's configuration, its settings, and what is wrong there."""
    name = stack.outputs["FunctionName"]
    found: dict[str, Any] = stack.call(
        "lambda", "get_function_configuration", FunctionName=name
    )
    variables = found.get("Environment", {}).get("Variables", {})
    own = {n: v for n, v in variables.items() if n.startswith("STEADWIRE_")}
    # The settings file of the function is in its zip; one that is here is another's.
    alone = {**own, "STEADWIRE_CONFIG": os.devnull}
    try:
        return found, load(alone, {}), []
    except SettingsError as error:
        # A mistake may show the value that is wrong: a key, for example.
        names = [re.search(r"STEADWIRE_\w+", each) for each in error.mistakes]
        wrong = dict.fromkeys(name[0] if name else "a variable" for name in names)
        return found, None, list(wrong)


def _function(stack: _Stack) -> Iterator[Finding]:
    found, settings, wrong = _settings(stack)
    subject, name = "function", found["FunctionName"]
    if found.get("State", "Active") != "Active":
        yield Finding(
            PROBLEM, subject, f"it is {found['State']}", "wait, or deploy it again"
        )
    if wrong:
        yield Finding(
            PROBLEM, subject, f"it cannot start: {', '.join(wrong)} is wrong", _DEPLOY
        )
    if settings is not None:
        yield from _variables(stack, settings, name)
    if found["Timeout"] <= ANSWER:
        text = f"its timeout is {found['Timeout']} s: deliveries hand over after 20"
        yield Finding(PROBLEM, subject, text, "set it to 60")
    version = tuple(map(int, re.findall(r"\d+", found.get("Runtime", "")))) or OLDEST
    if version < OLDEST:
        text = f"{found['Runtime']} has too old a C library for the locked packages"
        yield Finding(NOTE, subject, text, "make package with Python 3.12 or newer")
    reserved = stack.call("lambda", "get_function_concurrency", FunctionName=name).get(
        "ReservedConcurrentExecutions"
    )
    if reserved == 0:
        text = "no invocation is let through: its reserved concurrency is 0"
        remedy = "aws lambda delete-function-concurrency; the stack has not set that"
        yield Finding(PROBLEM, subject, text, remedy)
    elif reserved is None:
        text = (
            "it has no reserved concurrency, and shares the account's with all others"
        )
        yield Finding(NOTE, subject, text, "set ReservedConcurrency")


def _variables(stack: _Stack, settings: Settings, name: str) -> Iterator[Finding]:
    subject = "function"
    gateway, outputs = settings.gateway, stack.outputs
    for setting, value, wanted in (
        ("gateway.endpoint", gateway.endpoint, outputs["CallbackEndpoint"]),
        ("gateway.function", gateway.function.rpartition(":")[2], name),
        ("dynamodb.table", settings.dynamodb.table, outputs["TableName"]),
    ):
        if value != wanted:
            text = f"{setting} is not that of this stack"
            yield Finding(PROBLEM, subject, text, _DEPLOY)
    for setting, secret in (
        ("token.hmac_secret_key", settings.token.hmac_secret_key),
        ("api.key", settings.api.key),
    ):
        if "{{resolve:" in secret:
            text = f"{setting} is a reference that was not resolved"
            yield Finding(PROBLEM, subject, text, "see that the secret exists")
    if not settings.api.has_keys:
        text = "api.key is not set: nobody can publish over the server API"
        yield Finding(NOTE, subject, text, "set it, from a secret")
    if settings.environment != "production":
        text = f"its environment is {settings.environment!r}"
        yield Finding(NOTE, subject, text, "set STEADWIRE_ENVIRONMENT to production")
    for setting, weakness in settings.warnings.items():
        yield Finding(NOTE, subject, f"{setting}: {weakness}", "make another key")


def _schedule(stack: _Stack) -> Iterator[Finding]:
    found, settings, _ = _settings(stack)
    rules = stack.call(
        "events", "list_rule_names_by_target", TargetArn=found["FunctionArn"]
    )["RuleNames"]
    enabled = []
    for name in rules:
        rule = stack.call("events", "describe_rule", Name=name)
        if rule.get("State") == "ENABLED" and rule.get("ScheduleExpression"):
            enabled.append(rule["ScheduleExpression"])
    if not enabled:
        text = "no rule invokes the function: nobody is pinged, nothing expires"
        yield Finding(PROBLEM, "schedule", text, _DEPLOY)
    elif settings is not None:
        wanted = settings.gateway.sweep_interval
        if not any(_seconds(each) == wanted for each in enabled):
            text = f"{', '.join(enabled)} is not gateway.sweep_interval ({wanted:g} s)"
            yield Finding(PROBLEM, "schedule", text, "make them the same")


def _seconds(expression: str) -> int:
    found = re.fullmatch(r"rate\((\d+) (minute|hour|day)s?\)", expression)
    return int(found[1]) * _SECONDS[found[2]] if found else 0


def _sockets(stack: _Stack) -> Iterator[Finding]:
    subject, (api, stage) = "sockets", stack.sockets
    found = stack.call("apigatewayv2", "get_api", ApiId=api)
    if found["ProtocolType"] != "WEBSOCKET":
        yield Finding(PROBLEM, subject, "it is no WebSocket API", _DEPLOY)
        return
    if found["RouteSelectionExpression"] != SELECTION:
        text = f"its route selection is {found['RouteSelectionExpression']}"
        yield Finding(PROBLEM, subject, text, f"set it to {SELECTION}")
    routes = {
        each["RouteKey"]: each
        for each in stack.call("apigatewayv2", "get_routes", ApiId=api)["Items"]
    }
    if routes.keys() != ROUTES:
        odd = ", ".join(sorted(routes.keys() ^ ROUTES))
        text = f"{odd}: it has to have $connect, $default and $disconnect alone"
        yield Finding(PROBLEM, subject, text, _DEPLOY)
    for key, route in routes.items():
        if route.get("RouteResponseSelectionExpression"):
            text = f"{key} has a route response, which clients would take for a message"
            yield Finding(PROBLEM, subject, text, "remove it")
        if route.get("AuthorizationType", "NONE") != "NONE":
            text = f"{key} has an authorizer: the function checks tokens itself"
            yield Finding(NOTE, subject, text, "remove it, if it is not wanted")
    yield from _stage(stack, subject, api, stage)


def _api(stack: _Stack) -> Iterator[Finding]:
    routes = stack.call("apigatewayv2", "get_routes", ApiId=stack.api)["Items"]
    if not any(each["RouteKey"] == "POST /api/{method}" for each in routes):
        text = "it has no route POST /api/{method}: nobody can publish there"
        yield Finding(PROBLEM, "api", text, _DEPLOY)
    yield from _stage(stack, "api", stack.api, "$default")


def _stage(stack: _Stack, subject: str, api: str, name: str) -> Iterator[Finding]:
    stage = stack.call("apigatewayv2", "get_stage", ApiId=api, StageName=name)
    throttle = stage.get("DefaultRouteSettings", {})
    if not throttle.get("ThrottlingRateLimit"):
        text = f"stage {name} has no throttle: one API can use up the account's quota"
        yield Finding(NOTE, subject, text, "set MessageRate and ApiRate")
    log = stage.get("AccessLogSettings", {}).get("Format", "")
    if not log:
        text = f"stage {name} has no access log"
        yield Finding(NOTE, subject, text, _DEPLOY)
    elif _QUERY.search(log) or not _is_json(log):
        text = f"the access log of stage {name} may show tokens, or is not JSON"
        yield Finding(PROBLEM, subject, text, _DEPLOY)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _table(stack: _Stack) -> Iterator[Finding]:
    from service.stores.dynamodb import table
    from service.stores.dynamodb.client import opened

    _, settings, _ = _settings(stack)
    if settings is not None:

        async def compare(settings: Settings) -> list[str]:
            async with opened(settings.table, SystemClock()) as client:
                return await table.check(client, settings.table)

        try:
            problems = asyncio.run(compare(settings))
        except SteadwireError as error:
            problems = [" ".join(str(error).split())]
        for problem in problems:
            yield Finding(
                PROBLEM,
                "table",
                problem,
                "`steadwire tables create`, with the settings of the function",
            )
    backups = stack.call(
        "dynamodb",
        "describe_continuous_backups",
        TableName=stack.outputs["TableName"],
    )["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
    if backups.get("PointInTimeRecoveryStatus") != "ENABLED":
        yield Finding(NOTE, "table", "it has no point-in-time recovery", _DEPLOY)


def _alarms(stack: _Stack) -> Iterator[Finding]:
    resources = stack.call(
        "cloudformation", "describe_stack_resources", StackName=stack.name
    )["StackResources"]
    names = [
        each["PhysicalResourceId"]
        for each in resources
        if each["ResourceType"] == "AWS::CloudWatch::Alarm"
    ]
    if not names:
        yield Finding(PROBLEM, "alarms", "there are none", _DEPLOY)
        return
    alarms = stack.call("cloudwatch", "describe_alarms", AlarmNames=names)
    found = alarms["MetricAlarms"]
    if lost := set(names) - {each["AlarmName"] for each in found}:
        text = f"{len(lost)} of {len(names)} were deleted"
        yield Finding(PROBLEM, "alarms", text, _DEPLOY)
    if silent := [e for e in found if not (e["ActionsEnabled"] and e["AlarmActions"])]:
        text = f"{len(silent)} of {len(names)} tell nobody"
        yield Finding(NOTE, "alarms", text, "set AlarmEmail")
    for each in found:
        if each["StateValue"] == "ALARM":
            yield Finding(
                PROBLEM,
                "alarms",
                f"{each['AlarmName']} is in alarm: {each.get('AlarmDescription', '')}",
                "docs/serverless.md has the runbook",
            )


def _logs(stack: _Stack) -> Iterator[Finding]:
    found, _, _ = _settings(stack)
    name = found.get("LoggingConfig", {}).get("LogGroup", "")
    name = name or f"/aws/lambda/{found['FunctionName']}"
    groups = stack.call("logs", "describe_log_groups", logGroupNamePrefix=name)
    own = [each for each in groups["logGroups"] if each["logGroupName"] == name]
    if not own:
        yield Finding(NOTE, "logs", f"there is no log group {name}", _DEPLOY)
    elif not own[0].get("retentionInDays"):
        text = f"{name} is kept for ever, and costs for ever"
        yield Finding(NOTE, "logs", text, "set LogRetention")
