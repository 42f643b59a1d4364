"""infra/container.yaml: what linters miss, and the service with what it says."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from service.settings import Settings, load
from service.stores.dynamodb.table import template
from tests.harness.emulators import Emulator, running
from tests.harness.process import ROOT, environment
from tests.harness.server import Server
from tests.infra.linters import cfn_lint, checkov
from tests.infra.templates import Stack, read_template

TEMPLATE = ROOT / "infra" / "container.yaml"
DEPLOYMENT = ROOT / "docs" / "deployment.md"

PARAMETERS = {"DomainName": "chat.example.org", "AlarmTopicArn": "<topic>"}
EVERYTHING = PARAMETERS | {
    "Gateway": "true",
    "AccountLogRole": "true",
    "Valkey": "true",
    "HostedZoneId": "<zone>",
    "RepositoryArn": "<repository>",
    "Origins": '["https://www.example.org"]',
    "WithoutNamespace": '{"history_size":7}',
    "Namespaces": '[{"name":"news","allow_subscribe_for_client":true}]',
    "ConnectHook": "https://hooks.example.org/connect",
    "SubscribeHook": "https://hooks.example.org/subscribe",
    "PublishHook": "https://hooks.example.org/publish",
    "RpcHook": "https://hooks.example.org/rpc",
    "TokenKeySet": "https://login.example.org/keys",
    "TokenIssuer": "https://login.example.org",
    "TokenAudience": "chat",
}
SECRETS = {
    "token_hmac_secret_key": "t" * 64,
    "api_key": "a" * 64,
    "gateway_secret": "g" * 64,
    "broker_key": "b" * 64,
    "valkey_token": "v" * 64,
}

# Types of resources that the emulator refuses; cfn-lint and checkov look at them.
UNKNOWN_TO_MINISTACK = ("BalancerToTasks", "Scaling", "ScalingByCpu", "ScalingByMemory")

# What AWS documents of the metrics that alarms here are about: the dimensions.
METRICS = {
    "AWS/NetworkELB HealthyHostCount": {"LoadBalancer", "TargetGroup"},
    "AWS/NetworkELB UnHealthyHostCount": {"LoadBalancer", "TargetGroup"},
    "AWS/ECS CPUUtilization": {"ClusterName", "ServiceName"},
    "AWS/ECS MemoryUtilization": {"ClusterName", "ServiceName"},
    "AWS/DynamoDB WriteThrottleEvents": {"TableName"},
    "AWS/DynamoDB ReadThrottleEvents": {"TableName"},
    "AWS/ApiGateway ExecutionError": {"ApiId", "Stage"},
    "AWS/ApiGateway ClientError": {"ApiId", "Stage"},
    "AWS/ApiGateway IntegrationError": {"ApiId", "Stage"},
}


@pytest.fixture(scope="module", params=[PARAMETERS, EVERYTHING], ids=["plain", "all"])
def stack(request: pytest.FixtureRequest) -> Stack:
    return Stack(read_template(TEMPLATE), request.param)


def container(stack: Stack, task: str = "Task") -> dict[str, Any]:
    [only] = stack.properties(task)["ContainerDefinitions"]
    assert isinstance(only, dict)
    return only


def variables(stack: Stack, task: str = "Task") -> dict[str, str]:
    """Return the environment of a task's container, secrets among it."""
    about = container(stack, task)
    found = {each["Name"]: str(each["Value"]) for each in about["Environment"]}
    for each in about["Secrets"]:
        source = each["ValueFrom"]
        if source == "<BrokerUrl>":
            found[each["Name"]] = broker_url(stack)
        else:
            key = source.removeprefix("<SecretArn>:").removesuffix("::")
            found[each["Name"]] = SECRETS[key]
    return found


def broker_url(stack: Stack) -> str:
    """Return what CloudFormation makes of the secret with the address of Valkey."""
    made = stack.properties("BrokerUrl")["SecretString"]
    reference = re.compile(
        r"\{\{resolve:secretsmanager:<SecretArn>:SecretString:(\w+)\}\}"
    )
    url = reference.sub(lambda found: SECRETS[found[1]], made)
    url = url.replace("<ValkeyServer.PrimaryEndPoint.Address>", "valkey.internal")
    return str(url.replace("<ValkeyServer.PrimaryEndPoint.Port>", "6379"))


def settings(stack: Stack) -> Settings:
    return load(variables(stack), {})


def attributes(stack: Stack, name: str) -> dict[str, str]:
    found = stack.properties(name)["TargetGroupAttributes"]
    return {each["Key"]: each["Value"] for each in found}


def statements(stack: Stack) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, role in stack.resources("AWS::IAM::Role"):
        for policy in role.get("Policies", []):
            for statement in policy["PolicyDocument"]["Statement"]:
                yield name, statement


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the template, and with all its options, which checkov would leave out."""
    text = TEMPLATE.read_text()
    for name, value in EVERYTHING.items():
        text, changed = re.subn(
            rf"(  {name}:\n    Type: String\n    Default: ).*\n",
            lambda found, value=value: f"{found[1]}{json.dumps(value)}\n",
            text,
        )
        assert changed == (name != "DomainName"), name
    full = tmp_path_factory.mktemp("templates") / "everything.yaml"
    full.write_text(text)
    return [TEMPLATE, full]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_linters_find_nothing(variants: list[Path]) -> None:
    assert cfn_lint(TEMPLATE) == []
    assert [checkov(each, "cloudformation") for each in variants] == [[], []]


@pytest.mark.slow
def test_what_is_planted_is_found(tmp_path: Path) -> None:
    text = TEMPLATE.read_text()
    for right, wrong in (
        ("Protocol: TLS\n", "Protocol: TCP_TLS\n"),
        ("!Ref TaskGroup", "!Ref TasksGroup"),
        ("[logs:CreateLogStream", "[logs:CreateLogStreams"),
        ("!Ref ClientCidr", "!Ref Image"),
    ):
        assert right in text
        text = text.replace(right, wrong)
    planted = tmp_path / "planted.yaml"
    planted.write_text(text)
    found = {line.split(":")[5] for line in cfn_lint(planted)}
    assert found >= {"E3030", "E1020", "W3037", "W2001"}, found


def test_the_table_is_the_code_s(stack: Stack) -> None:
    own = settings(stack).dynamodb
    code = template(own)["Resources"]["Table"]
    table = stack.properties("Table")
    assert table.pop("PointInTimeRecoverySpecification")
    assert table == code["Properties"] | {"TableName": own.table}
    about = read_template(TEMPLATE)["Resources"]["Table"]
    for name, policy in (
        ("DeletionPolicy", "RetainExceptOnCreate"),
        ("UpdateReplacePolicy", "Retain"),
    ):
        assert about[name] == code[name] == policy


def test_the_settings_are_known_and_complete(stack: Stack) -> None:
    """`load` refuses what it does not know, and a service without a way in."""
    own = settings(stack)
    assert own.environment == "production"
    assert own.store.backend == "dynamodb"
    assert (own.server.host, own.server.port) == ("0.0.0.0", 8000)
    assert bool(own.gateway.endpoint) == bool(own.gateway.secret)
    callback = stack.outputs().get("CallbackEndpoint", "")
    assert own.gateway.endpoint == callback
    tables = variables(stack, "TablesTask")
    assert tables == variables(stack)


def test_channels_hooks_and_tokens_are_set_by_parameters() -> None:
    """Both tasks get them: `test_the_settings_are_known_and_complete` compares them."""
    own = settings(Stack(read_template(TEMPLATE), EVERYTHING))
    assert list(own.server.origins) == json.loads(EVERYTHING["Origins"])
    assert own.channels.without_namespace.history_size == 7
    [news] = own.channels.namespaces
    assert (news.name, news.allow_subscribe_for_client) == ("news", True)
    for hook in ("connect", "subscribe", "publish", "rpc"):
        given = EVERYTHING[f"{hook.title()}Hook"]
        assert getattr(own.proxy, hook) == given, hook
    token = own.token
    assert token.jwks_public_endpoint == EVERYTHING["TokenKeySet"]
    assert token.issuer == EVERYTHING["TokenIssuer"]
    assert token.audience == EVERYTHING["TokenAudience"]


def test_what_has_no_parameter_is_set_by_a_file_in_the_image(tmp_path: Path) -> None:
    """As docs/deployment.md has it; parameters that are empty leave it as it is."""
    text = DEPLOYMENT.read_text()
    [name] = re.findall(r"^ENV (STEADWIRE_CONFIG)=/etc/steadwire\.toml$", text, re.M)
    file = tmp_path / "steadwire.toml"
    file.write_text(
        '[server]\norigins = ["https://a.example.org"]\n'
        '[token]\nissuer = "a"\naudience = "b"\n'
        '[[channels.namespaces]]\nname = "news"\n'
    )
    stack = Stack(read_template(TEMPLATE), PARAMETERS)
    own = load({name: str(file)} | variables(stack), {})
    assert list(own.server.origins) == ["https://a.example.org"]
    assert (own.token.issuer, own.token.audience) == ("a", "b")
    assert [each.name for each in own.channels.namespaces] == ["news"]


def test_no_secret_is_in_the_template(stack: Stack) -> None:
    for each in container(stack)["Environment"]:
        assert not re.search(r"SECRET|KEY$|TOKEN$|PASSWORD", each["Name"]), each
    text = json.dumps([dict(stack.resources())])
    assert not any(secret in text for secret in SECRETS.values())


def test_roles_allow_what_is_documented_and_name_their_resources(stack: Stack) -> None:
    text = DEPLOYMENT.read_text()
    [policy] = re.findall(r"```json\n(.*?)```", text, re.S)
    documented = json.loads(policy)["Statement"][0]["Action"]
    found = list(statements(stack))
    task = [one for name, one in found if name == "TaskRole"]
    table = "arn:aws:dynamodb:eu-central-1:111122223333:table/steadwire"
    assert (listed(task[0]["Action"]), task[0]["Resource"]) == (documented, table)
    if len(task) > 1:
        [connections] = task[1:]
        assert connections["Action"] == "execute-api:ManageConnections"
        api = "arn:aws:execute-api:eu-central-1:111122223333:<GatewayApi>/prod"
        assert connections["Resource"] == f"{api}/*/@connections/*"
    for _name, statement in found:
        assert not any("*" in action for action in listed(statement["Action"]))
        if "*" in listed(statement["Resource"]):
            assert statement["Action"] == "ecr:GetAuthorizationToken"


def test_a_task_has_the_time_to_send_its_clients_away(stack: Stack) -> None:
    own = settings(stack)
    longest = read_template(TEMPLATE)["Parameters"]["DrainTime"]["MaxValue"]
    needed = longest + own.server.shutdown_timeout
    assert needed < container(stack)["StopTimeout"] <= 120  # Fargate has no more
    assert own.server.drain_time == 30.0
    targets = attributes(stack, "Targets")
    assert targets["deregistration_delay.connection_termination.enabled"] == "false"


def test_a_container_sees_the_memory_that_it_has(stack: Stack) -> None:
    """The limit of a task alone is not in the control group that the service reads."""
    for task in ("Task", "TablesTask"):
        assert container(stack, task)["Memory"] == stack.properties(task)["Memory"]


def test_valkey_is_encrypted_and_open_to_the_tasks_alone() -> None:
    stack = Stack(read_template(TEMPLATE), EVERYTHING)
    own = settings(stack).broker
    assert str.__eq__(
        own.url, f"rediss://:{SECRETS['valkey_token']}@valkey.internal:6379"
    )
    assert str.__eq__(own.key, SECRETS["broker_key"])
    server = stack.properties("ValkeyServer")
    assert server["TransitEncryptionEnabled"] is True
    assert server["SecurityGroupIds"] == ["<ValkeyGroup>"]
    [only] = stack.properties("ValkeyGroup")["SecurityGroupIngress"]
    assert (only["FromPort"], only["ToPort"]) == (6379, 6379)
    assert only["SourceSecurityGroupId"] == "<TaskGroup>"
    assert "CidrIp" not in only


def test_the_balancer_knows_the_service(stack: Stack) -> None:
    own = settings(stack)
    targets = stack.properties("Targets")
    [port] = container(stack)["PortMappings"]
    assert targets["Port"] == port["ContainerPort"] == own.server.port
    assert targets["HealthCheckPath"] == "/health/ready"
    assert attributes(stack, "Targets")["preserve_client_ip.enabled"] == "true"
    assert own.server.keep_alive > 350.0  # of the load balancer, for TCP and TLS
    assert own.client.ping_interval < 350.0
    [balancer] = stack.properties("Service")["LoadBalancers"]
    assert balancer["ContainerName"] == container(stack)["Name"]


def test_the_gateway_sends_what_the_service_reads() -> None:
    """Compared with the table of docs/serverless.md, which its tests are about."""
    stack = Stack(read_template(TEMPLATE), EVERYTHING)
    text = (ROOT / "docs" / "serverless.md").read_text()
    rows = dict(
        re.findall(r"^\| `((?:header|querystring)\.\S+)` \| `(.+?)`", text, re.M)
    )
    assert len(rows) == 9
    of_all = [name for name in rows if name.startswith("header.x-")]
    for event in ("Connect", "Message", "Disconnect"):
        about = stack.properties(f"Gateway{event}")
        path = f"/connection/gateway/{event.lower()}"
        assert about["IntegrationUri"] == f"https://chat.example.org{path}"
        sent = {
            name.removeprefix("integration.request."): value
            for name, value in about["RequestParameters"].items()
        }
        secret = sent["header.x-gw-secret"]
        assert re.fullmatch(
            r"'\{\{resolve:secretsmanager:.+:gateway_secret\}\}'", secret
        )
        expected = rows if event == "Connect" else {n: rows[n] for n in of_all}
        assert sent == expected | {"header.x-gw-secret": secret}
    declared = stack.properties("GatewayConnectRoute")["RequestParameters"]
    read = [value for value in rows.values() if value.startswith("route.")]
    assert sorted(declared) == sorted(read)
    keys = [
        route["RouteKey"] for _, route in stack.resources("AWS::ApiGatewayV2::Route")
    ]
    assert sorted(keys) == ["$connect", "$default", "$disconnect"]


def test_the_log_of_the_gateway_is_json_without_the_query() -> None:
    stack = Stack(read_template(TEMPLATE), EVERYTHING)
    access = stack.properties("GatewayStageResource")["AccessLogSettings"]["Format"]
    assert json.loads(access)["connection"] == "$context.connectionId"
    assert len(access) < 3072
    assert not re.search(r"query|\$context\.path|authorizer", access, re.I)


def test_the_role_for_logs_of_the_account_is_set_before_the_stage() -> None:
    """Once in an account and Region; AWS refuses a stage with a log without it."""
    made = ("LogRole", "LogAccount")
    for asked, expected in (
        ({}, False),
        ({"Gateway": "true"}, False),
        ({"AccountLogRole": "true"}, False),
        ({"Gateway": "true", "AccountLogRole": "true"}, True),
    ):
        stack = Stack(read_template(TEMPLATE), PARAMETERS | asked)
        names = {name for name, _ in stack.resources()}
        assert [name in names for name in made] == [expected] * 2, asked
    assert stack.properties("LogAccount") == {"CloudWatchRoleArn": "<LogRole.Arn>"}
    resources = read_template(TEMPLATE)["Resources"]
    assert "<LogAccount>" in stack.properties("GatewayStageResource")["Description"]
    for name in made:  # other APIs of the account use it
        assert resources[name]["DeletionPolicy"] == "Retain"


def test_alarms_are_on_metrics_that_exist(stack: Stack) -> None:
    own = {
        f"{one['MetricNamespace']} {one['MetricName']}"
        for _, filter in stack.resources("AWS::Logs::MetricFilter")
        for one in filter["MetricTransformations"]
    }
    for name, alarm in stack.resources("AWS::CloudWatch::Alarm"):
        metric = f"{alarm['Namespace']} {alarm['MetricName']}"
        given = {each["Name"] for each in alarm.get("Dimensions", [])}
        assert given == (set() if metric in own else METRICS[metric]), name
        assert alarm["AlarmActions"] == ["<topic>"], name
        assert alarm["AlarmDescription"]
        own.discard(metric)
    assert not own, "nothing looks at these"


def test_each_alarm_of_the_gateway_counts_what_it_says() -> None:
    """Failed calls of the service; refusals by the gateway; refusals by the service."""
    stack = Stack(read_template(TEMPLATE), EVERYTHING)
    for name, metric, least in (
        ("GatewayFails", "ExecutionError", 5),
        ("GatewayRefuses", "ClientError", 50),
        ("GatewayIsRefused", "IntegrationError", 50),
    ):
        alarm = stack.properties(name)
        assert (alarm["MetricName"], alarm["Threshold"]) == (metric, least)


def test_filters_find_what_the_service_logs(stack: Stack) -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    for _, one in stack.resources("AWS::Logs::MetricFilter"):
        for field, value in re.findall(r'\$\.(\w+) = "([^"]+)"', one["FilterPattern"]):
            assert field in ("event", "level")
            assert field == "level" or f'"{value}"' in sources
            assert field == "event" or value in ("error", "critical")


def test_each_alarm_has_an_entry_in_the_runbook() -> None:
    stack = Stack(read_template(TEMPLATE), EVERYTHING)
    text = DEPLOYMENT.read_text()
    alarms = {name for name, _ in stack.resources("AWS::CloudWatch::Alarm")}
    section = text[text.index("### Alarms of the container service") :]
    section = section[: section.index("\n#", 1)]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == alarms


def health(stack: Stack, port: int) -> int:
    """Run the health check of the container, and return its exit status."""
    shell, _python, *arguments = container(stack)["HealthCheck"]["Command"]
    assert shell == "CMD"
    command = [one.replace(":8000/", f":{port}/") for one in arguments]
    return subprocess.run(
        [sys.executable, *command], stderr=subprocess.DEVNULL
    ).returncode


def deploy(
    emulator: Emulator, table: str, parameters: dict[str, Any]
) -> dict[str, str]:
    """Deploy the template into the emulator, and return the outputs of the stack."""
    known = read_template(TEMPLATE)
    for name in UNKNOWN_TO_MINISTACK:
        del known["Resources"][name]
    secrets = boto(emulator, "secretsmanager")
    secret = secrets.create_secret(Name=table, SecretString=json.dumps(SECRETS))["ARN"]
    given = {
        "VpcId": "vpc-1",
        "PublicSubnets": "subnet-1,subnet-2",
        "PrivateSubnets": "subnet-3,subnet-4",
        "CertificateArn": "arn:aws:acm:us-east-1:111122223333:certificate/1",
        "Image": "steadwire:local",
        "SecretArn": secret,
        "TableName": table,
        **parameters,
    }
    formation = boto(emulator, "cloudformation")
    formation.create_stack(
        StackName=table,
        TemplateBody=json.dumps(known),
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[
            {"ParameterKey": name, "ParameterValue": str(value)}
            for name, value in given.items()
        ],
    )
    formation.get_waiter("stack_create_complete").wait(
        StackName=table, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )
    [stack] = formation.describe_stacks(StackName=table)["Stacks"]
    return {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}


def boto(emulator: Emulator, service: str) -> Any:
    return boto3.session.Session().client(
        service,
        region_name="us-east-1",
        endpoint_url=emulator.endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


@pytest.mark.slow
@pytest.mark.parametrize("gateway", ["false", "true"])
async def test_what_is_deployed_serves_with_these_variables(
    tmp_path: Path, gateway: str
) -> None:
    """In ministack, by the steps of docs/deployment.md; only addresses are others."""
    emulator = running("ministack")
    table = emulator.settings().table
    parameters = {"DomainName": "chat.example.org", "Gateway": gateway, "DrainTime": 1}
    outputs = deploy(emulator, table, parameters)
    assert outputs["SocketAddress"] == "wss://chat.example.org/connection/websocket"
    assert ("CallbackEndpoint" in outputs) == (gateway == "true")
    own = variables(Stack(read_template(TEMPLATE), parameters | {"TableName": table}))
    assert own["STEADWIRE_DYNAMODB_TABLE"] == outputs["TableName"]
    own |= emulator.credentials | {
        "STEADWIRE_DYNAMODB_REGION": "us-east-1",
        "STEADWIRE_DYNAMODB_ENDPOINT": emulator.endpoint,
        "STEADWIRE_SERVER_HOST": "127.0.0.1",
    }
    if gateway == "true":
        own["STEADWIRE_GATEWAY_ENDPOINT"] = outputs["CallbackEndpoint"]
    check = container(Stack(read_template(TEMPLATE), parameters), "TablesTask")
    for command in (check["Command"], ["tables", "check"]):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "service", *command],
            cwd=tmp_path,
            env=environment(own),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    server = Server(tmp_path)
    server.settings = {n: v for n, v in own.items() if n != "STEADWIRE_SERVER_PORT"}
    server.key = own["STEADWIRE_API_KEY"]
    stack = Stack(read_template(TEMPLATE), parameters)
    try:
        await server.start()
        assert await asyncio.to_thread(health, stack, server.port) == 0
        async with server.api() as api:
            assert await api.publish("deployed", 1) == 1
        assert await server.terminate() == 0
        assert await asyncio.to_thread(health, stack, server.port) != 0
        assert {line["level"] for line in server.log()} <= {"info", "warning"}
    finally:
        server.close()
