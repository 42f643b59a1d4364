"""The SAM template: what its checks find, what they miss, and planted mistakes.

cfn-lint reads the template as it is written and as SAM transforms it, checkov (a slow
test) the latter; the rest is looked at here. Each of the mistakes at
the end is one that somebody could make, and is found by the check that it names.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.package import OLDEST, package
from service.core.errors import SettingsError
from service.settings import DynamodbSettings, load
from service.settings.known_names import Names
from service.settings.load import Settings
from service.stores.dynamodb import table
from tests.harness.process import ROOT
from tests.harness.tools import check
from tests.infra.linters import cfn_lint, checkov
from tests.infra.templates import Stack, read_template

TEMPLATE = ROOT / "infra" / "serverless.yaml"
PARAMETERS = {
    "CodeBucket": "bucket",
    "CodeKey": "key.zip",
    "Runtime": "python3.13",
    "AlarmEmail": "ops@example.org",
    "AccountLogRole": "yes",
}

# What AWS publishes: the metrics of a namespace, with the dimensions of each. From the
# pages "Monitor WebSocket API execution with CloudWatch metrics", "Monitor HTTP APIs
# with CloudWatch metrics", "Types of metrics for Lambda functions" and "DynamoDB
# metrics and dimensions" of its documentation.
SOCKETS = "ConnectCount MessageCount IntegrationError ClientError ExecutionError"
HTTP = "Count 4xx 5xx DataProcessed Latency"
FUNCTION = """
    Invocations Errors Throttles Duration ConcurrentExecutions AsyncEventsReceived
    AsyncEventAge AsyncEventsDropped DeadLetterErrors
"""
TABLE = """
    ConsumedReadCapacityUnits ConsumedWriteCapacityUnits ReadThrottleEvents
    WriteThrottleEvents TransactionConflict ConditionalCheckFailedRequests
"""
OF_API = frozenset({"ApiId", "Stage"})
METRICS = {
    **{("AWS/ApiGateway", name): OF_API for name in (SOCKETS + " " + HTTP).split()},
    ("AWS/ApiGateway", "IntegrationLatency"): OF_API,
    **{("AWS/Lambda", name): frozenset({"FunctionName"}) for name in FUNCTION.split()},
    **{("AWS/DynamoDB", name): frozenset({"TableName"}) for name in TABLE.split()},
}

UNITS = ("minute", "hour", "day")


def transformed(template: Path) -> str:
    """Return what SAM makes of a template; its errors are raised."""
    script = Path(__file__).with_name("sam_transform.py")
    done = subprocess.run(
        [check("cfn-lint").with_name("python"), script, template],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        raise ValueError(done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the transformed template, as a file."""
    path = tmp_path_factory.mktemp("sam") / "transformed.json"
    path.write_text(transformed(TEMPLATE))
    return path


def stack_of(source: Path, made: Path, **parameters: object) -> Stack:
    """Return the stack of a transformed template."""
    template = json.loads(made.read_text())
    template["Parameters"] = read_template(source)["Parameters"]
    return Stack(template, PARAMETERS | parameters)


@pytest.fixture(scope="module")
def stack(made: Path) -> Stack:
    return stack_of(TEMPLATE, made)


# Checks of our own: each returns what is wrong.


def schedules(stack: Stack) -> Iterator[str]:
    """A number of units, one of which has no s."""
    for name, rule in stack.resources("AWS::Events::Rule"):
        found = re.fullmatch(r"rate\((\d+) (\w+)\)", rule["ScheduleExpression"])
        if not found or found[2] not in (
            UNITS if found[1] == "1" else [f"{each}s" for each in UNITS]
        ):
            yield f"{name}: {rule['ScheduleExpression']} is no schedule"


def resources_of(stack: Stack) -> Iterator[tuple[str, dict[str, Any]]]:
    for _, role in stack.resources("AWS::IAM::Role"):
        for policy in role.get("Policies", ()):
            for statement in policy["PolicyDocument"]["Statement"]:
                yield statement["Sid"], statement


def wildcards(stack: Stack) -> Iterator[str]:
    """No action has a wildcard; a resource has one where connections are named."""
    for sid, statement in resources_of(stack):
        for field, allowed in (("Action", ()), ("Resource", ("@connections/*",))):
            values = statement[field]
            for value in [values] if isinstance(values, str) else values:
                if "*" in value and not value.endswith(tuple(allowed) or ("\0",)):
                    yield f"{sid}: {field} {value}"


def widgets_of(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the widgets of a dashboard; `dashboards` says if it is not JSON."""
    try:
        found: list[dict[str, Any]] = json.loads(board["DashboardBody"])["widgets"]
    except ValueError:
        return []
    return found


def metrics(stack: Stack) -> Iterator[tuple[str, str, str, frozenset[str]]]:
    """Yield where a metric is named, and the metric."""
    for name, alarm in stack.resources("AWS::CloudWatch::Alarm"):
        names = frozenset(each["Name"] for each in alarm.get("Dimensions", ()))
        yield name, alarm["Namespace"], alarm["MetricName"], names
    for name, board in stack.resources("AWS::CloudWatch::Dashboard"):
        for widget in widgets_of(board):
            before: list[str] = []
            for row in widget["properties"]["metrics"]:
                words = [each for each in row if isinstance(each, str)]
                full = [
                    before[at] if word == "." else word for at, word in enumerate(words)
                ]
                before = full
                where = f"{name}, {widget['properties']['title']}"
                yield where, full[0], full[1], frozenset(full[2::2])


def unknown_metrics(stack: Stack) -> Iterator[str]:
    """Every alarm and every line of the dashboard is about a metric that exists."""
    own = {
        (each["MetricNamespace"], each["MetricName"])
        for _, one in stack.resources("AWS::Logs::MetricFilter")
        for each in one["MetricTransformations"]
    }
    known = METRICS | dict.fromkeys(own, frozenset[str]())
    for where, namespace, metric, names in metrics(stack):
        if known.get((namespace, metric)) != names:
            yield f"{where}: {namespace} {metric} {sorted(names)}"


def dashboards(stack: Stack) -> Iterator[str]:
    """Each is JSON when its names are put in, and its widgets do not overlap."""
    for name, board in stack.resources("AWS::CloudWatch::Dashboard"):
        try:
            widgets = json.loads(board["DashboardBody"])["widgets"]
        except ValueError as error:
            yield f"{name}: {error}"
            continue
        taken: set[tuple[int, int]] = set()
        for each in widgets:
            cells = {
                (x, y)
                for x in range(each["x"], each["x"] + each["width"])
                for y in range(each["y"], each["y"] + each["height"])
            }
            if cells & taken or max(x for x, _ in cells) >= 24:
                yield f"{name}: {each['properties']['title']} overlaps"
            taken |= cells


def settings_of(stack: Stack) -> dict[str, str]:
    """Return the function's variables, with names where AWS puts addresses."""
    variables = stack.properties("Handler")["Environment"]["Variables"]
    return {name: re.sub("[<>]", "", value) for name, value in variables.items()}


def wrong_settings(stack: Stack) -> Iterator[str]:
    """The service knows each variable, and starts with all of them."""
    variables = settings_of(stack)
    known = Names(Settings).variables
    for name in variables:
        if name not in known:
            yield f"{name} is not a setting"
    try:
        settings = load(variables, {})
        settings.check_admission(hook=False)
    except Exception as error:
        yield str(error)
    else:
        if not (settings.api.key and settings.gateway.function):
            yield "a setting is missing"


CHECKS: tuple[Callable[[Stack], Iterator[str]], ...] = (
    schedules,
    wildcards,
    dashboards,
    unknown_metrics,
    wrong_settings,
)


def test_cfn_lint_finds_nothing(made: Path) -> None:
    """In the source, and in what SAM makes of it; remarks count."""
    assert cfn_lint(TEMPLATE) == []
    assert cfn_lint(made) == []


@pytest.mark.slow
def test_checkov_finds_nothing_without_a_reason(made: Path) -> None:
    assert checkov(made, "cloudformation") == []


@pytest.mark.parametrize("look", CHECKS, ids=lambda look: look.__name__)
def test_our_checks_find_nothing(stack: Stack, look: Callable[..., Any]) -> None:
    assert list(look(stack)) == []


def test_a_runtime_is_one_that_a_package_is_made_for() -> None:
    allowed = read_template(TEMPLATE)["Parameters"]["Runtime"]["AllowedValues"]
    versions = [tuple(map(int, re.findall(r"\d+", each))) for each in allowed]
    assert min(versions) == OLDEST


def test_a_package_takes_no_wrong_settings_file(tmp_path: Path) -> None:
    config = tmp_path / "steadwire.toml"
    config.write_text('[client]\nallowed_origins = ["https://chat.example.org"]\n')
    with pytest.raises(SettingsError, match="there is no such setting"):
        package("x86_64", tmp_path / "dist", config, here=True)
    assert not (tmp_path / "dist").exists()


def test_the_settings_file_of_the_guide_is_right(stack: Stack, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "serverless.md").read_text()
    [written] = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    config = tmp_path / "steadwire.toml"
    config.write_text(re.sub(r"^ +", "", written, flags=re.MULTILINE))
    settings = load({**settings_of(stack), "STEADWIRE_CONFIG": str(config)}, {})
    assert settings.server.origins == ("https://chat.example.org",)


def test_an_account_with_a_small_quota_can_reserve_nothing(made: Path) -> None:
    about = read_template(TEMPLATE)["Parameters"]["ReservedConcurrency"]
    assert about["MinValue"] == 0
    for reserved, set_to in ((0, None), (100, 100)):
        stack = stack_of(TEMPLATE, made, ReservedConcurrency=reserved)
        function = stack.properties("Handler")
        assert function.get("ReservedConcurrentExecutions") == set_to


def test_the_table_is_the_one_that_the_code_makes(stack: Stack) -> None:
    """Backups and tags beside it."""
    found = stack.properties("Table")
    assert found.pop("PointInTimeRecoverySpecification")
    assert found.pop("Tags")
    wanted = table.template(DynamodbSettings())["Resources"]["Table"]
    del wanted["Properties"]["TableName"]
    assert found == wanted["Properties"]
    assert wanted["UpdateReplacePolicy"] == "Retain"
    assert wanted["DeletionPolicy"] == "RetainExceptOnCreate"


@pytest.mark.parametrize("name", ["Table", "TokenKey", "ApiKey"])
def test_what_is_kept_is_not_left_behind_by_a_failed_creation(name: str) -> None:
    written = read_template(TEMPLATE)["Resources"][name]
    assert written["DeletionPolicy"] == "RetainExceptOnCreate"
    assert written["UpdateReplacePolicy"] == "Retain"


def calls_of(*folders: str) -> set[str]:
    """Return the operations of DynamoDB that code names in a `call`."""
    found: set[str] = set()
    for folder in folders:
        for path in (ROOT / "service" / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and node.value in OPERATIONS:
                    found.add(node.value)
    return found


OPERATIONS = {
    "batch_get_item": ("BatchGetItem",),
    "batch_write_item": ("BatchWriteItem",),
    "delete_item": ("DeleteItem",),
    "describe_table": ("DescribeTable",),
    "get_item": ("GetItem",),
    "put_item": ("PutItem",),
    "query": ("Query",),
    "scan": ("Scan",),
    "transact_get_items": ("GetItem",),
    "transact_write_items": (
        "PutItem",
        "UpdateItem",
        "DeleteItem",
        "ConditionCheckItem",
    ),
    "update_item": ("UpdateItem",),
}


def test_the_role_allows_what_the_function_calls_and_nothing_else(
    stack: Stack,
) -> None:
    statements = dict(resources_of(stack))
    assert statements.keys() == {"Table", "Connections", "Itself", "Log"}
    used = {
        f"dynamodb:{action}"
        for operation in calls_of("stores/dynamodb")
        for action in OPERATIONS[operation]
    }
    assert set(statements["Table"]["Action"]) == used
    assert statements["Table"]["Resource"] == "<Table.Arn>"
    assert statements["Itself"]["Resource"].endswith(":function:steadwire")
    assert stack.properties("Handler")["FunctionName"] == "steadwire"
    for resource in statements["Connections"]["Resource"]:
        assert "<Sockets>/live/" in resource
    assert statements["Log"]["Resource"] == "<LogGroup.Arn>"


def test_a_sweep_is_as_often_as_the_settings_say(stack: Stack) -> None:
    [(_, rule)] = stack.resources("AWS::Events::Rule")
    settings = load(settings_of(stack), {})
    assert rule["ScheduleExpression"] == "rate(1 minute)"
    assert settings.gateway.sweep_interval == 60.0


def needs(template: dict[str, Any], name: str) -> set[str]:
    """Return the resources that have to be made before the resource *name*."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        text = json.dumps(template["Resources"][waiting.pop()])
        named = set(re.findall(r"\w+", text)) & template["Resources"].keys()
        waiting += named - found
        found |= named
    return found


def test_the_stage_waits_for_the_role_of_its_log(made: Path) -> None:
    template = json.loads(made.read_text())
    assert "LogAccount" in needs(template, "SocketsliveStage")


def test_no_output_and_no_log_shows_a_secret(stack: Stack) -> None:
    outputs = stack.outputs()
    assert outputs["SocketAddress"].startswith("wss://<Sockets>.execute-api.")
    assert outputs["ApiAddress"].startswith("https://<Api>.execute-api.")
    variables = settings_of(stack)
    endpoint = re.sub("[<>]", "", outputs["CallbackEndpoint"])
    assert variables["STEADWIRE_GATEWAY_ENDPOINT"] == endpoint
    assert not [each for each in outputs.values() if "resolve:" in each]
    for name in ("STEADWIRE_TOKEN_HMAC_SECRET_KEY", "STEADWIRE_API_KEY"):
        value = variables[name]
        assert re.fullmatch(r"\{\{resolve:secretsmanager:\w+:SecretString}}", value)
    for _, stage in stack.resources("AWS::ApiGatewayV2::Stage"):
        line = json.loads(stage["AccessLogSettings"]["Format"])
        assert {"requestId", "route", "status", "ip"} <= line.keys()
        assert not re.search(r"query|\.path|header|authorizer|body", str(line), re.I)


def test_every_part_that_costs_has_the_tag_of_the_budget(stack: Stack) -> None:
    kinds = {
        "AWS::ApiGateway::Account",
        "AWS::ApiGatewayV2::Integration",
        "AWS::ApiGatewayV2::Route",
        "AWS::Budgets::Budget",
        "AWS::CloudWatch::Alarm",
        "AWS::CloudWatch::Dashboard",
        "AWS::Events::Rule",
        "AWS::Lambda::EventInvokeConfig",
        "AWS::Lambda::Permission",
        "AWS::Logs::MetricFilter",
    }
    untagged = {name for kind in kinds for name, _ in stack.resources(kind)}
    untagged.add("SocketsliveStage")  # SAM tags it, and passes ours to the API alone
    for name, properties in stack.resources():
        if name in untagged:
            continue
        tags = properties.get("Tags")
        if isinstance(tags, list):
            tags = {tag["Key"]: tag["Value"] for tag in tags}
        assert tags and tags["steadwire"] == "steadwire", name
    budget = stack.properties("Budget")["Budget"]
    assert budget["CostFilters"] == {"TagKeyValue": ["user:steadwire$steadwire"]}


def test_every_alarm_is_told_and_has_a_runbook(stack: Stack) -> None:
    text = (ROOT / "docs" / "serverless.md").read_text()
    names = [name for name, _ in stack.resources("AWS::CloudWatch::Alarm")]
    for name, alarm in stack.resources("AWS::CloudWatch::Alarm"):
        assert alarm["AlarmActions"] == ["<Alarms>"], name
    runbook = text[text.index("## Alarms") :]
    assert re.findall(r"^\| `(\w+)` \|", runbook, re.MULTILINE) == names


def test_each_alarm_of_the_sockets_counts_what_it_says(stack: Stack) -> None:
    """Failed calls of the function; refusals by the gateway; and by the function."""
    for name, metric in (
        ("SocketsFail", "ExecutionError"),
        ("SocketsRefused", "ClientError"),
        ("ConnectsRefused", "IntegrationError"),
    ):
        assert stack.properties(name)["MetricName"] == metric


# Mistakes. With each stand what is changed, and the check that finds it.

MISTAKES = {
    "a property is misspelt": (
        "BillingMode:",
        "BilingMode:",
        "cfn-lint, source: E3002",
    ),
    "a value that does not exist": (
        "BillingMode: PAY_PER_REQUEST",
        "BillingMode: PAY_PER_CALL",
        "cfn-lint, source: E3030",
    ),
    "an attribute that no key uses": (
        "      AttributeDefinitions:\n",
        "      AttributeDefinitions:\n"
        "        - { AttributeName: other, AttributeType: S }\n",
        "cfn-lint, source: E3039",
    ),
    "a throttle that is no number": (
        "ThrottlingBurstLimit: 2000",
        "ThrottlingBurstLimit: many",
        "cfn-lint, source: E3012",
    ),
    "a route without a function": (
        "$default: { FunctionArn: !GetAtt Handler.Arn, IntegrationTimeout: 29000 }",
        "$default: { IntegrationTimeout: 29000 }",
        "cfn-lint, source: E3003",
    ),
    "a route with a dot in its key": (
        "        $disconnect:",
        "        a.b: { FunctionArn: !GetAtt Handler.Arn }\n        $disconnect:",
        "sam: must be alphanumeric",
    ),
    "an attribute that a resource does not have": (
        "Resource: !GetAtt Table.Arn",
        "Resource: !GetAtt Table.Address",
        "cfn-lint, source: E1010",
    ),
    "a permission is misspelt": (
        "dynamodb:GetItem",
        "dynamodb:GetItems",
        "cfn-lint, transformed: W3037",
    ),
    "a role for every table": (
        "Resource: !GetAtt Table.Arn",
        'Resource: "*"',
        "wildcards: Table: Resource *",
    ),
    "a schedule in bad English": (
        "rate(1 minute)",
        "rate(1 minutes)",
        "schedules: HandlerSweep",
    ),
    "a dashboard that is not JSON": (
        '[".", "5xx", ".", ".", ".", "."]]}},',
        '[".", "5xx", ".", ".", ".", "."],]}},',
        "dashboards: Dashboard",
    ),
    "an alarm on a metric that does not exist": (
        "MetricName: IntegrationError",
        "MetricName: IntegrationErrors",
        "unknown_metrics: ConnectsRefused",
    ),
    "a setting is misspelt": (
        "STEADWIRE_API_KEY:",
        "STEADWIRE_APIKEY:",
        "wrong_settings: STEADWIRE_APIKEY is not a setting",
    ),
}


def found(source: Path, made: Path) -> Iterator[str]:
    """Yield what is wrong with a template, the cheapest check first."""
    for each in cfn_lint(source):
        yield f"cfn-lint, source: {each}"
    try:
        made.write_text(transformed(source))
    except ValueError as error:
        yield f"sam: {error}"
        return
    for each in cfn_lint(made):
        yield f"cfn-lint, transformed: {each}"
    stack = stack_of(source, made)
    for look in CHECKS:
        for fault in look(stack):
            yield f"{look.__name__}: {fault}"


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str, tmp_path: Path) -> None:
    old, new, finder = MISTAKES[mistake]
    text = TEMPLATE.read_text()
    assert old in text
    source = tmp_path / "serverless.yaml"
    source.write_text(text.replace(old, new, 1))
    finder, code = finder.split(": ", 1)
    faults = []
    for each in found(source, tmp_path / "transformed.json"):
        if each.startswith(finder) and code in each:
            return
        faults.append(each)
    pytest.fail("\n".join(faults) or "nothing was found")
