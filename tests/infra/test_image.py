"""The Dockerfile: its steps, run in a plain directory, make a service that starts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import load
from tests.harness.ports import free_port
from tests.harness.process import ROOT
from tests.harness.raw import RawClient
from tests.harness.tokens import signed
from tests.infra.dockerfile import Instruction, read_dockerfile
from tests.infra.linters import checkov, hadolint

DOCKERFILE = ROOT / "Dockerfile"
INSTRUCTIONS = read_dockerfile(DOCKERFILE)
LAST = INSTRUCTIONS[-1].stage
SECRETS = {
    "STEADWIRE_API_KEY": "a" * 32,
    "STEADWIRE_TOKEN_HMAC_SECRET_KEY": "t" * 64,
}


def of(stage: int, name: str) -> list[Instruction]:
    return [one for one in INSTRUCTIONS if (one.stage, one.name) == (stage, name)]


def variables(stage: int) -> dict[str, str]:
    pairs = [word.partition("=") for one in of(stage, "ENV") for word in one.words]
    return {name: value for name, _, value in pairs}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_linters_find_nothing() -> None:
    assert hadolint(DOCKERFILE) == []
    assert checkov(DOCKERFILE, "dockerfile") == []


def test_both_stages_begin_with_the_same_image_by_its_digest() -> None:
    [base] = of(-1, "ARG")
    name, _, image = base.text.partition("=")
    assert re.fullmatch(r"python:3\.\d+-slim-\w+@sha256:[0-9a-f]{64}", image)
    froms = [one.words[0] for one in INSTRUCTIONS if one.name == "FROM"]
    assert froms == [f"${{{name}}}"] * 2


def test_it_runs_as_nobody_in_particular() -> None:
    [user] = of(LAST, "USER")
    assert user.text == "10001:10001"
    assert INSTRUCTIONS.index(user) > INSTRUCTIONS.index(of(LAST, "RUN")[-1])
    own = load(variables(LAST) | SECRETS, {})
    assert own.environment == "production"
    assert own.server.host == "0.0.0.0"
    [port] = of(LAST, "EXPOSE")
    assert int(port.text) == own.server.port
    # What is written is in the volume; all else may be read-only.
    [volume] = of(LAST, "VOLUME")
    assert Path(own.store.path).parent == Path(volume.text)
    assert variables(LAST)["PYTHONDONTWRITEBYTECODE"] == "1"


def test_its_context_is_what_it_copies() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    copied = {word for one in of(0, "COPY") for word in one.words[:-1]}
    assert copied == sent
    assert all((ROOT / each).exists() for each in copied)
    kept = re.search(
        r"packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S
    )
    assert kept
    needed = {each.split(".")[0] for each in re.findall(r'"([\w.]+)"', kept[1])}
    assert needed <= copied


class Directory:
    """A plain directory in which the steps of the image are run.

    Without root and without an image: absolute paths of the image are below it, and
    what only a system has (packages of Debian, users) is left out.
    """

    ours = ("/source", "/opt", "/wheels", "/data")
    left_out = re.compile(
        r"^(apt-get|rm -rf /var/lib/apt|groupadd|useradd|install) ?.*"
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self.there = path
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("STEADWIRE_", "SERVICE_", "PYTHON"))
        }
        for each in self.ours:
            (path / each[1:]).mkdir()

    def inside(self, text: str) -> str:
        paths = "|".join(self.ours)
        return re.sub(rf"(?<![\w/])({paths})(?![\w-])", rf"{self.path}\1", text)

    def do(self, one: Instruction) -> None:
        match one.name:
            case "ENV":
                for word in one.words:
                    name, _, value = self.inside(word).partition("=")
                    path = self.environment["PATH"]
                    self.environment[name] = value.replace("$PATH", path)
            case "WORKDIR":
                self.there = Path(self.inside(one.text))
            case "COPY" if not one.text.startswith("--from"):
                *sources, target = one.words
                for source in map(Path, sources):
                    self.copy(source, self.there / target)
            case "RUN":
                steps = [each.strip() for each in one.text.split("&&")]
                steps = [each for each in steps if not self.left_out.match(each)]
                for step in steps:
                    self.run(re.sub(r"^python ", f"{sys.executable} ", step))

    def copy(self, source: Path, target: Path) -> None:
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.c", "*.egg-info")
            shutil.copytree(ROOT / source, target, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / source, target / source.name)

    def run(self, step: str) -> None:
        done = subprocess.run(
            self.inside(step),
            shell=True,
            cwd=self.there,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (
            f"{step}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Directory:
    directory = Directory(tmp_path_factory.mktemp("image"))
    for one in INSTRUCTIONS:
        directory.do(one)
    # The first stage is not in the image.
    for each in ("source", "wheels", "opt/build"):
        shutil.rmtree(directory.path / each)
    return directory


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_steps_of_the_image_make_a_service_that_starts(
    made: Directory,
) -> None:
    directory = made
    port = free_port()
    own = directory.environment | SECRETS | {"STEADWIRE_SERVER_PORT": str(port)}
    own["STEADWIRE_SERVER_HOST"] = "127.0.0.1"
    packages = directory.path / "opt" / "steadwire" / "lib"
    [speedups] = packages.rglob("_speedups")
    assert len(list(speedups.glob("*_c*.so"))) == 6
    assert not list(packages.glob("*/site-packages/pip"))
    before = {path: path.stat().st_mtime_ns for path in packages.rglob("*")}
    [entry], [command] = of(LAST, "ENTRYPOINT"), of(LAST, "CMD")
    executable = shutil.which(entry.words[0], path=own["PATH"])
    assert executable is not None and executable.startswith(str(directory.path))
    check = json.loads(of(LAST, "HEALTHCHECK")[0].text.partition("CMD ")[2])
    arguments = [word.replace(":8000/", f":{port}/") for word in check]

    def healthy() -> bool:
        done = subprocess.run(arguments, env=own, stderr=subprocess.DEVNULL)
        return done.returncode == 0

    assert not await asyncio.to_thread(healthy)
    process = subprocess.Popen(
        [executable, *command.words],
        cwd=directory.there,
        env=own,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        while not await asyncio.to_thread(healthy):
            assert process.poll() is None, process.stderr.read().decode()
        async with await RawClient.open(port) as client:
            secret = SECRETS["STEADWIRE_TOKEN_HMAC_SECRET_KEY"]
            token = signed({"sub": "42"}, secret)
            assert (await client.connect(token=token))["client"]
        process.terminate()
        assert await asyncio.to_thread(process.wait, 30) == 0
        assert (directory.path / "data" / "steadwire.db").is_file()
        after = {path: path.stat().st_mtime_ns for path in packages.rglob("*")}
        assert after == before
    finally:
        process.kill()
        process.communicate()
