"""Make the zip of the Lambda function: ``make package`` (docs/serverless.md).

    python infra/package.py [--architecture x86_64|arm64] [--config FILE] [--to FOLDER]

The zip has the service with its compiled extensions, the packages of requirements.lock
by their hashes, byte code for all of it, and the settings file, if there is one. It is
for the version of Python that runs this. Two builds of the same sources are equal, byte
by byte: names are sorted, times are constant, byte code is checked by nothing.

Extensions are taken along if they are of the wanted architecture and would load where
Lambda runs; else the interpreted twins are used there, and this says what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from service.core.errors import SettingsError
from service.settings import load

ROOT = Path(__file__).resolve().parents[1]
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

# By architecture of Lambda: what machines call it, and the wheels that load there.
MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}
LAMBDA = (2, 34)
"""glibc of Amazon Linux 2023, on which Python runs there from `OLDEST` on."""
OLDEST = (3, 12)
"""Python 3.11 runs on Amazon Linux 2, for which google-re2 has no wheel any more."""

# What servers need and a function does not: it is imported in no invocation. The last
# two lines are those of the lock's extras, `valkey` and `agents`.
UNUSED = """
    hypercorn uvloop h2 hpack hyperframe priority wsproto
    redis
    ag-ui-protocol pydantic pydantic-core annotated-types typing-inspection
"""
# Of botocore only what the table and the signatures need: the rest is 100 MB of models.
MODELS = ("dynamodb", "sts")

# What infra/serverless.yaml sets, or the like of it: variables win over the file.
_VARIABLES = {
    "STEADWIRE_ENVIRONMENT": "production",
    "STEADWIRE_STORE_BACKEND": "dynamodb",
    "STEADWIRE_DYNAMODB_TABLE": "table",
    "STEADWIRE_DYNAMODB_REGION": "us-east-1",
    "STEADWIRE_GATEWAY_ENDPOINT": "https://gateway.example.org/live",
    "STEADWIRE_GATEWAY_FUNCTION": "steadwire",
    "STEADWIRE_GATEWAY_SWEEP_INTERVAL": "60",
    "STEADWIRE_LOG_FORMAT": "json",
    "STEADWIRE_TOKEN_HMAC_SECRET_KEY": "a-key-that-only-the-stack-has-in-its-secrets",
    "STEADWIRE_API_KEY": "a-key-that-only-the-stack-has-in-its-secrets",
}

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip can hold
_NEEDED = re.compile(rb"GLIBC_(\d+)\.(\d+)")
_INSTEAD = "Interpreted code takes their place: slower, otherwise the same"


def main() -> None:
    """Make the zip and print its name, its size and the Python it is for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--architecture", choices=MACHINES, default="x86_64")
    parser.add_argument("--config", type=Path, help="a settings file to take along")
    parser.add_argument("--to", type=Path, default=ROOT / "dist")
    parser.add_argument(
        "--here", action="store_true", help="for this machine, not for Lambda"
    )
    given = parser.parse_args()
    if sys.version_info < OLDEST and not given.here:
        sys.exit(
            f"this is Python {VERSION}, and on Lambda it has to be 3.12 or newer: "
            "make package PYTHON=python3.13 VENV=.venv-lambda"
        )
    try:
        path, notes = package(
            given.architecture, given.to, given.config, here=given.here
        )
    except SettingsError as error:
        sys.exit(str(error))
    with zipfile.ZipFile(path) as made:
        unpacked = sum(each.file_size for each in made.infolist())
    for note in notes:
        print(note)
    print(
        f"{path}: {path.stat().st_size / 2**20:.1f} MiB, {unpacked / 2**20:.1f} MiB "
        f"unpacked (Lambda takes 250)\n"
        f"Runtime=python{VERSION} Architecture={given.architecture}"
    )


def package(
    architecture: str, folder: Path, config: Path | None = None, *, here: bool = False
) -> tuple[Path, list[str]]:
    """Make the zip; return its path, which its content determines, and notes.

    Args:
        architecture: ``x86_64`` or ``arm64``.
        folder: Where to put it.
        config: A settings file to take along, as steadwire.toml.
        here: It is for the C library of this machine, whose Python Lambda may lack.

    Raises:
        SettingsError: The function could not start with the settings file.
    """
    if config is not None:
        load({**_VARIABLES, "STEADWIRE_CONFIG": str(config)}, {})
    glibc = _glibc() if here else LAMBDA
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name, "tree")
        tree.mkdir()
        _install_packages(tree, MACHINES[architecture], glibc)
        notes = _copy_service(tree, MACHINES[architecture], glibc)
        if config is not None:
            shutil.copyfile(config, tree / "steadwire.toml")
        _compile(tree)
        made = Path(name, "made.zip")
        _zip(tree, made)
        digest = hashlib.sha256(made.read_bytes()).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        path = (
            folder / f"steadwire-{_version()}-py{VERSION}-{architecture}-{digest}.zip"
        )
        shutil.move(made, path)
    return path, notes


def _version() -> str:
    with open(ROOT / "pyproject.toml", "rb") as file:
        found: str = tomllib.load(file)["project"]["version"]
    return found


def _glibc() -> tuple[int, int]:
    major, minor = platform.libc_ver()[1].split(".")[:2]
    return int(major), int(minor)


def _install_packages(tree: Path, machine: str, glibc: tuple[int, int]) -> None:
    """Install what requirements.lock names, by hash, from wheels alone."""
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\S)", lock)
    unused = UNUSED.split()
    kept = [each for each in entries if each.partition("==")[0] not in unused]
    requirements = tree.parent / "requirements.txt"
    requirements.write_text("\n".join(kept))
    tags = [f"manylinux_2_{minor}" for minor in range(17, glibc[1] + 1)]
    command = f"""
        -m pip --disable-pip-version-check --quiet install
        --no-deps --no-compile --only-binary=:all: --require-hashes
        --implementation=cp --python-version={VERSION}
    """
    platforms = [f"--platform={tag}_{machine}" for tag in ["manylinux2014", *tags]]
    places = [f"--target={tree}", f"--requirement={requirements}"]
    subprocess.run([sys.executable, *command.split(), *platforms, *places], check=True)
    shutil.rmtree(tree / "bin", ignore_errors=True)
    for record in tree.glob("*.dist-info/RECORD"):
        record.unlink()  # it lists what is not there any more
    for model in (tree / "botocore" / "data").iterdir():
        if model.is_dir() and model.name not in MODELS:
            shutil.rmtree(model)
    for tests in [*tree.rglob("tests"), *tree.rglob("__pycache__")]:
        shutil.rmtree(tests, ignore_errors=True)


def _copy_service(tree: Path, machine: str, glibc: tuple[int, int]) -> list[str]:
    """Copy the service and its extensions; return what was left out, and why."""
    for name in ("service", "_speedups"):
        for source in sorted((ROOT / name).rglob("*.py")):
            to = tree / source.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, to)
    notes = list(_copy_extensions(tree, machine, glibc))
    about = tree / f"steadwire-{_version()}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: steadwire\nVersion: {_version()}\n"
    )
    return notes


def _copy_extensions(tree: Path, machine: str, glibc: tuple[int, int]) -> Iterator[str]:
    suffix = f".cpython-{VERSION.replace('.', '')}-{machine}-linux-gnu.so"
    found = sorted((ROOT / "_speedups").glob(f"*{suffix}"))
    if not found and machine != platform.machine():
        yield (
            f"without compiled extensions: for {machine} they are built on such a "
            f"machine, and this one is {platform.machine()}. {_INSTEAD}"
        )
    elif not found:
        yield (
            "without compiled extensions: none are built; `make install` builds them "
            f"with a C compiler. {_INSTEAD}"
        )
    for each in found:
        needed = max(
            ((int(a), int(b)) for a, b in _NEEDED.findall(each.read_bytes())),
            default=(0, 0),
        )
        if needed > glibc:
            yield (
                f"without {each.name}: it needs glibc 2.{needed[1]}, and there is "
                f"2.{glibc[1]}. {_INSTEAD}"
            )
        else:
            shutil.copyfile(each, tree / "_speedups" / each.name)


def _compile(tree: Path) -> None:
    """Write byte code that is believed without a look at its source's time.

    In one process of its own, with files in order: what it writes depends on what was
    compiled before.
    """
    code = (
        "import compileall, py_compile, sys\n"
        "mode = py_compile.PycInvalidationMode.UNCHECKED_HASH\n"
        "for path in sys.stdin.read().splitlines():\n"
        "    compileall.compile_file(path, stripdir=sys.argv[1], quiet=2,"
        " prependdir='/var/task', invalidation_mode=mode)\n"
    )
    paths = sorted(str(each) for each in tree.rglob("*.py"))
    subprocess.run(
        [sys.executable, "-I", "-c", code, str(tree)],
        input="\n".join(paths),
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )


def _zip(tree: Path, to: Path) -> None:
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as made:
        files = {
            path.relative_to(tree).as_posix(): path
            for path in tree.rglob("*")
            if path.is_file()
        }
        for name, path in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if path.suffix == ".so" else 0o644) << 16
            made.writestr(entry, path.read_bytes())


if __name__ == "__main__":
    main()
