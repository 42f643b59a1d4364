"""The states of the build: with instruments, in a wheel, and without a compiler."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import _speedups
from tests.speedups.twins import COMPILED, needs_compiled

ROOT = Path(__file__).parents[2]
slow = [pytest.mark.slow, pytest.mark.timeout(900)]


def instrumented(*arguments):
    script = Path(__file__).with_name("instrumented.py")
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@needs_compiled
@pytest.mark.parametrize("kind", ["checked", "asan"])
class TestInstruments:
    pytestmark = slow

    def test_the_same_tests_pass(self, kind):
        ended = instrumented(kind)
        assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
        assert int(re.search(r"(\d+) passed", ended.stdout)[1]) > 800
        assert "skipped" not in ended.stdout

    def test_a_planted_overflow_is_reported(self, kind):
        ended = instrumented(kind, "--plant")
        status, report = {
            "checked": (134, "read outside its text"),
            "asan": (99, "ERROR: AddressSanitizer: heap-buffer-overflow"),
        }[kind]
        assert report in ended.stderr, ended.stdout[-4000:] + ended.stderr[-4000:]
        assert ended.returncode == status


def wheel(tmp_path, state):
    """Build a wheel from a copy of what is committed, and return its names."""
    source = tmp_path / "source"
    source.mkdir()
    parts = ("service", "_speedups", "demo", "clients", "setup.py", "pyproject.toml")
    for name in parts:
        path = ROOT / name
        ignored = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=ignored)
        else:
            shutil.copy(path, source)
    for name in ("README.md", "LICENSE"):
        (source / name).write_text("")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "."]
    subprocess.run(
        [*command, "--wheel-dir", str(tmp_path)],
        cwd=source,
        env=dict(os.environ, SERVICE_BUILD_SPEEDUPS=state),
        check=True,
    )
    (made,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(tmp_path / "installed")
        return made.name, archive.namelist()


def loaded(tmp_path):
    """Say what the package in the wheel chooses."""
    code = "import _speedups as s; print(s.COMPILED, s.scan_commands('{}'))"
    installed = str(tmp_path / "installed")
    return subprocess.run(
        # -S: an editable install would lend its extensions to the package.
        [sys.executable, "-S", "-c", code],
        env=dict(os.environ, PYTHONPATH=installed, SERVICE_NO_SPEEDUPS=""),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


class TestWheels:
    pytestmark = slow

    def test_a_wheel_has_the_extensions_and_no_generated_c(self, tmp_path):
        name, files = wheel(tmp_path, "yes")
        for piece in ("json_c", "frames_c", "rtt_c", "backoff_c", "delta_c"):
            assert [f for f in files if re.match(rf"_speedups/{piece}\.\S+\.so$", f)]
        assert not [f for f in files if f.endswith((".c", ".h", ".cpp"))]
        assert "none-any" not in name
        page = {f for f in files if f.startswith("service/demo/page/")}
        assert {
            f"service/demo/page/{each.name}" for each in (ROOT / "demo").iterdir()
        } < page
        assert "service/demo/page/threads.js" in page
        assert loaded(tmp_path) == "True [(0, '', {})]\n"

    def test_a_wheel_without_a_compiler_is_pure_and_works(self, tmp_path):
        name, files = wheel(tmp_path, "no")
        assert name.endswith("-none-any.whl")
        assert not [f for f in files if f.endswith((".so", ".c"))]
        assert loaded(tmp_path) == "False [(0, '', {})]\n"

    def test_an_unset_state_survives_a_compiler_that_fails(self, tmp_path, monkeypatch):
        monkeypatch.setenv("CC", "false")
        _, files = wheel(tmp_path, "")
        assert not [f for f in files if f.endswith(".so")]
        assert loaded(tmp_path) == "False [(0, '', {})]\n"

    def test_a_compiler_that_fails_is_fatal_when_asked_for(self, tmp_path, monkeypatch):
        monkeypatch.setenv("CC", "false")
        with pytest.raises(subprocess.CalledProcessError):
            wheel(tmp_path, "yes")


@pytest.mark.parametrize("off", ["", "1"])
def test_one_variable_forces_the_interpreted_side(off):
    code = (
        "import _speedups as s;"
        "print(s.COMPILED, {getattr(s, n).__module__[-2:] for n in s.__all__[3:]})"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ, SERVICE_NO_SPEEDUPS=off),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    compiled = COMPILED and not off
    assert ended.stdout == ("True {'_c'}\n" if compiled else "False {'py'}\n")


def test_the_package_imports_nothing_of_the_service():
    for path in Path(_speedups.__file__).parent.glob("*.p*"):
        if path.suffix in (".py", ".pyx", ".pxd"):
            assert not re.search(r"^\s*(from|import|cimport) service", path.read_text())
