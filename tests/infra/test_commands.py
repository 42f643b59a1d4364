"""Commands of docs/deployment.md and README exist, and the files that they name do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator

import click
import pytest
from botocore.session import get_session

from service.cli import main
from tests.harness.process import ROOT
from tests.infra.templates import Stack, read_template

TEXT = (ROOT / "docs" / "deployment.md").read_text()
README = (ROOT / "README.md").read_text()

# Options of the AWS command line itself, and of `cloudformation deploy`, which is made
# of several operations.
GLOBAL = {"query", "output", "region", "profile"}
DEPLOY = {"stack-name", "template-file", "capabilities", "tags", "parameter-overrides"}


def commands(page: str = TEXT) -> Iterator[list[str]]:
    for block in re.findall(r"^ *```sh\n(.*?)^ *```$", page, re.S | re.M):
        text = re.sub(r"\\\n\s*", "", block)
        text = re.sub(r"\"\$\(.*?\)\"", "SECRET", text, flags=re.S)
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words[1:] if words[0] == "sudo" else words


def paths(words: list[str]) -> list[str]:
    """Return the words that name files of this repository."""
    return [each for each in words if re.match(r"(infra/|requirements|\.$)", each)]


def options(words: list[str]) -> set[str]:
    return {each[2:].partition("=")[0] for each in words if each.startswith("--")}


def faults_aws(words: list[str]) -> list[str]:
    service, operation, *rest = words
    given = options(rest) - GLOBAL
    if (service, operation) == ("cloudformation", "deploy"):
        unknown = given - DEPLOY
        template = read_template(ROOT / rest[rest.index("--template-file") + 1])
        start = rest.index("--parameter-overrides") + 1
        for each in rest[start:]:
            name, is_one, _ = each.partition("=")
            if is_one and name not in template["Parameters"]:
                unknown.add(name)
        if "CreateTable=false" not in rest and "DomainName=chat.example.org" in rest:
            needed = {
                n for n, a in template["Parameters"].items() if "Default" not in a
            }
            unknown |= needed - {each.partition("=")[0] for each in rest[start:]}
        return sorted(unknown)
    model = get_session().get_service_model(service)
    name = "".join(map(str.capitalize, operation.split("-")))
    members = model.operation_model(name).input_shape.members
    known = {re.sub(r"(?<!^)(?=[A-Z])", "-", each).lower() for each in members}
    return sorted(given - known)


def faults_steadwire(words: list[str]) -> list[str]:
    command: click.Command = main
    for word in words:
        if isinstance(command, click.Group):
            if word not in command.commands:
                return [word]
            command = command.commands[word]
    known = {one for p in command.params for one in p.opts}
    return sorted(each for each in words if each.startswith("-") and each not in known)


def faults_make(words: list[str]) -> list[str]:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    return [each for each in words if "=" not in each and each not in targets]


def faults_kubectl(words: list[str]) -> list[str]:
    known = {"apply", "create", "kustomize", "rollout"}
    wrong = [] if words[0] in known else [words[0]]
    names = [each.partition("/")[2] for each in words if each.startswith("deployment/")]
    return wrong + [each for each in names if each != "steadwire"]


def nothing(words: list[str]) -> list[str]:
    """Only the files that they name are looked at."""
    return []


PROGRAMS: dict[str, Callable[[list[str]], list[str]]] = {
    "aws": faults_aws,
    "kubectl": faults_kubectl,
    "make": faults_make,
    "steadwire": faults_steadwire,
    "/opt/steadwire/bin/steadwire": faults_steadwire,
    **dict.fromkeys(
        (
            "/opt/steadwire/bin/pip",
            "curl",
            "docker",
            "emulator/bin/ministack",  # tests/e2e/test_examples.py runs these
            "emulator/bin/pip",
            "export",
            "install",
            "nginx",
            "python3",
            "systemctl",
            "systemd-analyze",
        ),
        nothing,
    ),
}


def faults(words: list[str]) -> list[str]:
    program, *rest = words
    if program not in PROGRAMS:
        return [program]
    missing = [each for each in paths(rest) if not (ROOT / each).exists()]
    return missing + PROGRAMS[program](rest)


def test_every_command_is_one_that_exists() -> None:
    found = list(commands())
    wrong = {shlex.join(words): found for words in found if (found := faults(words))}
    assert wrong == {}
    assert len(list(commands())) > 30


def test_every_command_of_the_readme_is_one_that_exists() -> None:
    """Those that clients paste are run by tests/e2e/test_examples.py."""
    spoken = re.findall(r"`((?:make|steadwire) [^`]+)`", README)
    said = [*commands(README), *map(shlex.split, spoken)]
    wrong = {shlex.join(words): found for words in said if (found := faults(words))}
    assert wrong == {}
    assert len(said) > 12


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("aws ecs run-task --clusters x", ["clusters"]),
        ("aws dynamodb create-backup --name x", ["name"]),
        (
            "aws cloudformation deploy --template-file infra/container.yaml"
            " --parameter-overrides Gatewy=true",
            ["Gatewy"],
        ),
        ("steadwire tables made", ["made"]),
        ("steadwire serve --ports 1", ["--ports"]),
        ("make imag", ["imag"]),
        ("kubectl rollout undo deployment/x", ["x"]),
        ("install infra/systemd/x.service /etc", ["infra/systemd/x.service"]),
        ("wget x", ["wget"]),
    ],
)
def test_a_wrong_command_is_found(command: str, found: list[str]) -> None:
    assert faults(shlex.split(command)) == found


def test_what_stands_for_outputs_is_one() -> None:
    everything = {"Gateway": "true", "HostedZoneId": "Z1"}
    outputs = Stack(
        read_template(ROOT / "infra" / "container.yaml"), everything
    ).outputs()
    for name in ("ClusterName", "TablesTask", "TaskSecurityGroup", "BalancerName"):
        assert f"`{name}`" in TEXT and name in outputs
