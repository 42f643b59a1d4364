"""Proof that tests of requirements can fail: `python -m tests.requirements.prove`.

Each `R13.patch` beside this file takes the behaviour of a row out of the code. The
tests of the rows must pass on an unchanged copy of the tree, together, and of each row
at least one must fail on a copy with its patch. Arguments are rows; without any, all
that have a patch are proven.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.requirements.coverage import collected
from tests.requirements.rows import FOLDER, rows

__all__ = ["ROOT", "Copy", "patches", "wanted"]

ROOT = FOLDER.parents[1]

_AT_ONCE = 2
_FAILED = 1  # pytest's exit status when tests failed, and nothing worse happened
_TAIL = 4000  # characters of output that explain what went wrong


class _Unproven(Exception):
    """Of a row, no test notices that its behaviour is gone."""


def patches() -> dict[str, Path]:
    """Return the patch of each row that has one, in the order of the rows."""
    found = {path.stem: path for path in FOLDER.glob("*.patch")}
    return {row: found.pop(row) for row in rows() if row in found} | found


def wanted() -> list[str]:
    """Return the rows that have a patch when all is done: live ones of R and L."""
    return [row for row in rows() if row[0] in "RL" and rows()[row].live]


class Copy:
    """A copy of the tree, with the interpreter and the tools of the original."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout.decode()
        built = [path.relative_to(ROOT) for path in ROOT.glob("_speedups/*.so")]
        for name in [*filter(None, listed.split("\0")), *map(str, built)]:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        for name in (".venv", ".tools"):
            if (ROOT / name).exists():
                (folder / name).symlink_to(ROOT / name)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run Python in the copy; return the exit status and the output.

        The package is installed from the original tree: the copy comes first on the
        path, of subprocesses too. Bytecode is of this run alone, because a patch may
        change a file within the second and to the same size.
        """
        with tempfile.TemporaryDirectory() as bytecode:
            done = subprocess.run(
                [sys.executable, *arguments],
                cwd=self.folder,
                env={
                    **os.environ,
                    "CI": "true",  # the same examples in each run
                    "PYTHONPATH": str(self.folder),
                    "PYTHONPYCACHEPREFIX": bytecode,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        return done.returncode, done.stdout

    def test(self, *arguments: str) -> tuple[int, str]:
        return self.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)

    def check(self) -> None:
        """See to it that the copy imports itself.

        Raises:
            SystemExit: It imports the original.
        """
        code = "import service, _speedups; print(service.__file__, _speedups.__file__)"
        status, output = self.run("-c", code)
        if status or output.count(f"{self.folder}{os.sep}") != 2:
            sys.exit(f"{self.folder} does not import itself: {output}")

    @contextmanager
    def patched(self, patch: Path) -> Iterator[None]:
        """Apply *patch*, and take it back."""
        self._apply(patch)
        try:
            yield
        finally:
            self._apply(patch, "--reverse")

    def _apply(self, patch: Path, *options: str) -> None:
        done = subprocess.run(
            ["git", "apply", *options, str(patch)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            # Paths would be a repository's that the temporary folder lies in.
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(self.folder.parent)},
        )
        if done.returncode:
            raise _Unproven(f"the patch does not apply: {done.stderr.strip()}")


def _kill(copy: Copy, row: str, tests: Mapping[str, bool]) -> str:
    """Return the test of *row* that notices that its behaviour is gone.

    Raises:
        _Unproven: None does.
    """
    if not tests:
        raise _Unproven("the row has no test")
    quick_first = sorted(tests, key=lambda test: (tests[test], test))
    with copy.patched(patches()[row]):
        status, output = copy.test("-x", *quick_first)
    if status != _FAILED:
        raise _Unproven(f"pytest ended with status {status}:\n{output[-_TAIL:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return failed[1] if failed else "?"


def _prove(asked: Iterable[str]) -> Iterator[tuple[str, str, str, float]]:
    """Return for each row: the row, what killed it or "", what went wrong, seconds."""
    tests = collected()
    with tempfile.TemporaryDirectory() as folder:
        copies = [Copy(Path(folder) / str(number)) for number in range(_AT_ONCE)]
        free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for copy in copies:
            copy.check()
            free.put(copy)

        together = sorted({test for row in asked for test in tests[row]})
        status, output = copies[0].test("-n", str(_AT_ONCE), *together)
        if status:
            sys.exit(f"without any patch, tests fail:\n{output[-_TAIL:]}")
        print(f"{len(together)} tests pass without any patch", flush=True)

        def one(row: str) -> tuple[str, str, str, float]:
            copy = free.get()
            began = time.monotonic()
            try:
                killed, wrong = _kill(copy, row, tests[row]), ""
            except _Unproven as error:
                killed, wrong = "", str(error)
            finally:
                free.put(copy)
            return row, killed, wrong, time.monotonic() - began

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            yield from pool.map(one, asked)


def main(arguments: list[str]) -> None:
    known = patches()
    asked = arguments or list(known)
    if unknown := [row for row in asked if row not in known]:
        sys.exit(f"no patch of {', '.join(unknown)} beside {__file__}")
    unproven = {}
    for row, killed, wrong, seconds in _prove(asked):
        print(f"{row:4} {seconds:4.0f} s  {killed or 'NOT PROVEN'}", flush=True)
        if wrong:
            unproven[row] = wrong
    for row, wrong in unproven.items():
        print(f"\n{row}: {wrong}")
    print(f"{len(asked) - len(unproven)} of {len(asked)} proven")
    sys.exit(bool(unproven))


if __name__ == "__main__":
    main(sys.argv[1:])
