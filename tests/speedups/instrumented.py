"""Build the extensions with instruments, apart from the tree, and run the tests.

    python tests/speedups/instrumented.py checked      # every read within bounds
    python tests/speedups/instrumented.py asan         # AddressSanitizer
    python tests/speedups/instrumented.py asan --plant # must fail: reads too far

The exit status is pytest's, 99 from AddressSanitizer, or 134 after a read out of
bounds. Further arguments go to pytest. ``--plant`` takes the terminator for an
ordinary character, so that a string without an end is read beyond its buffer.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUARD = "while c >= 0x20 and"
PLANT = "while (c >= 0x20 or c == 0) and"


def copy(target: Path) -> None:
    """Copy what the build and the tests need."""
    for name in ("_speedups", "tests/speedups"):
        ignored = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    shutil.copy(ROOT / "setup.py", target)
    # Not pyproject.toml whole: it names packages and files that stay behind.
    text = (ROOT / "pyproject.toml").read_text()
    (target / "pyproject.toml").write_text(text[text.index("[tool.pytest") :])


def plant(target: Path) -> None:
    """Put the overflow in."""
    source = target / "_speedups" / "json_scan.pxd"
    text = source.read_text()
    assert text.count(GUARD) == 1, "the guard to remove has changed"
    source.write_text(text.replace(GUARD, PLANT))


def libasan() -> str:
    """Return the run-time library of the compiler that builds the extensions."""
    compiler = sysconfig.get_config_var("CC").split()[0]
    command = [compiler, "-print-file-name=libasan.so"]
    return subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.strip()


def main(kind: str, *arguments: str) -> int:
    """Build, run, and return an exit status."""
    environment = dict(os.environ, SERVICE_BUILD_SPEEDUPS="yes", PYTHONPATH="")
    environment.pop("SERVICE_NO_SPEEDUPS", None)
    state = {"checked": "SERVICE_DEBUG_SPEEDUPS", "asan": "SERVICE_ASAN_SPEEDUPS"}
    environment[state[kind]] = "1"
    with tempfile.TemporaryDirectory() as name:
        target = Path(name)
        copy(target)
        if "--plant" in arguments:
            plant(target)
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=target, env=environment, check=True)
        # The small blocks of Python's own allocator have no guards around them.
        environment["PYTHONMALLOC"] = "malloc"
        if kind == "asan":
            environment["LD_PRELOAD"] = libasan()
            # No leaks: CPython keeps what it made at the start until the end.
            environment["ASAN_OPTIONS"] = "detect_leaks=0:exitcode=99"
        rest = [each for each in arguments if each != "--plant"]
        run = [sys.executable, "-m", "pytest", "tests/speedups", "-q", "-m", "not slow"]
        run += ["-p", "no:cacheprovider", "-p", "no:faulthandler"]
        run += ["--capture=no", *rest]  # else the report dies with the process
        status = subprocess.run(run, cwd=target, env=environment).returncode
        return status if status >= 0 else 128 - status  # as a shell says it


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
