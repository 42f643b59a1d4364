"""Deploy infra/serverless.yaml into ministack: ``make deploy-local``.

    python infra/deploy_local.py ZIP [--endpoint URL]

ministack is an emulated AWS on this machine (docs/serverless.md says what it cannot
do). The template is deployed as it is, but for the address of its own callbacks, which
is where ministack has them. Without an endpoint ministack is started, and ends with
Ctrl-C, and with it everything that was stored.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from botocore.session import Session

TEMPLATE = Path(__file__).with_name("serverless.yaml")
REGION = "us-east-1"
READY = 60.0  # s until ministack answers, and until the stack is made

# As the template writes it, and as a path of ministack.
_CALLBACKS = "https://${Sockets}.execute-api.${AWS::Region}.${AWS::URLSuffix}"
_PATH = "_aws/execute-api"


class Deployed(NamedTuple):
    """A stack in ministack.

    Attributes:
        name: Of the stack.
        outputs: Those of the stack, as on AWS.
        socket: Where clients connect.
        api: The server API is below /api.
        api_key: Its key.
        token_key: Signs the tokens of clients.
    """

    name: str
    outputs: dict[str, str]
    socket: str
    api: str
    api_key: str
    token_key: str


def client(endpoint: str, service: str) -> Any:
    """Return a client of a service of ministack."""
    return Session().create_client(
        service,
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


def deploy(endpoint: str, package: Path, name: str, **parameters: str) -> Deployed:
    """Deploy the stack *name* with a zip of `package.py`.

    Raises:
        RuntimeError: The stack was not made.
    """
    bucket = f"{name}-code"
    s3 = client(endpoint, "s3")
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key=package.name, Body=package.read_bytes())
    text = TEMPLATE.read_text()
    assert _CALLBACKS in text
    text = text.replace(_CALLBACKS, f"{endpoint}/{_PATH}/${{Sockets}}")
    given = {
        "CodeBucket": bucket,
        "CodeKey": package.name,
        "Runtime": "python3.13",  # a name: ministack's own Python runs the function
        **parameters,
    }
    formation = client(endpoint, "cloudformation")
    formation.create_stack(
        StackName=name,
        TemplateBody=text,
        Parameters=[
            {"ParameterKey": each, "ParameterValue": value}
            for each, value in given.items()
        ],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
    )
    outputs = _made(formation, name)
    secrets = client(endpoint, "secretsmanager")

    def secret(output: str) -> str:
        found: str = secrets.get_secret_value(SecretId=outputs[output])["SecretString"]
        return found

    callbacks = outputs["CallbackEndpoint"]
    api = outputs["ApiAddress"].partition("://")[2].partition(".")[0]
    return Deployed(
        name,
        outputs,
        callbacks.replace("http", "ws", 1),
        f"{endpoint}/{_PATH}/{api}/$default",
        secret("ApiKeyArn"),
        secret("TokenKeyArn"),
    )


def _made(formation: Any, name: str) -> dict[str, str]:
    """Wait for a stack; return its outputs."""
    deadline = time.monotonic() + READY
    while True:
        [stack] = formation.describe_stacks(StackName=name)["Stacks"]
        if stack["StackStatus"] == "CREATE_COMPLETE":
            return {o["OutputKey"]: o["OutputValue"] for o in stack["Outputs"]}
        if "IN_PROGRESS" not in stack["StackStatus"] or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    reasons = [
        f"{each['LogicalResourceId']}: {each.get('ResourceStatusReason', '')}"
        for each in formation.describe_stack_events(StackName=name)["StackEvents"]
        if "FAILED" in each["ResourceStatus"]
    ]
    raise RuntimeError(f"{stack['StackStatus']}: {'; '.join(reasons)}")


@contextmanager
def _ministack() -> Iterator[str]:
    """Run ministack until the block ends; its endpoint."""
    program = shutil.which("ministack")
    if program is None:
        sys.exit("ministack is needed: make deploy-local installs it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "LOG_LEVEL": "ERROR",
    }
    endpoint = f"http://127.0.0.1:{port}"
    with subprocess.Popen([program], env={**os.environ, **own}) as process:
        try:
            deadline = time.monotonic() + READY
            while not _answers(endpoint):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit("ministack does not start")
                time.sleep(0.1)
            yield endpoint
        finally:
            process.terminate()


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=5.0).close()
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        return False
    return True


def main() -> None:
    """Deploy, print the addresses, and wait for Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--endpoint", help="of a ministack that runs already")
    given = parser.parse_args()
    if given.endpoint:
        _show(deploy(given.endpoint, given.package, "steadwire"))
        return
    with _ministack() as endpoint:
        _show(deploy(endpoint, given.package, "steadwire"))
        try:
            while True:
                time.sleep(3600.0)
        except KeyboardInterrupt:
            print("ended; nothing is kept")


def _show(made: Deployed) -> None:
    # Keys and addresses have characters that mean something to a shell.
    url, key = quote(f"{made.api}/api/publish"), quote(f"X-API-Key: {made.api_key}")
    command = Path(sys.executable).with_name("steadwire")
    print(
        f"stack {made.name} in ministack\n"
        f"  WebSocket  {made.socket}\n"
        f"  API        {made.api}/api\n"
        f"  API key    {made.api_key}\n"
        f"  token key  {made.token_key}\n"
        "\nPublish a message:\n\n"
        f"curl -sS -w '\\n' {url} -H 'Content-Type: application/json' -H {key} "
        """-d '{"channel":"chat","data":{"text":"hello"}}'\n"""
        "\nMake a token for a client, which is subscribed to that channel:\n\n"
        f"STEADWIRE_TOKEN_HMAC_SECRET_KEY={quote(made.token_key)} "
        f"{command} token --user ann --join chat",
        flush=True,
    )


if __name__ == "__main__":
    main()
