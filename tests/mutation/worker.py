"""Runs tests against mutants: in forks of a process that has collected them already.

A mutant of a function becomes that function's code object in a fork, and only the tests
that run its lines are run there, until one fails. What runs at import (constants,
defaults) is changed while it is imported, in a fork that has not imported it yet.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import resource
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from tests.mutation.mutants import Mutant

__all__ = ["OUTCOMES", "run"]

SURVIVED, KILLED, TIMEOUT, UNREACHED, AT_IMPORT, BROKEN = range(6)
OUTCOMES = ("survived", "killed", "timeout", "not reached", "at import", "broken")

PROCESSES = 2
PATIENCE = 10.0
"""A mutant's tests may take this many times as long as the code's own, and as many
seconds more, of CPU; thrice that by the clock, since the machine may be shared."""

ENOUGH = 6.0
"""Seconds that the tests of one mutant take by themselves, their lines traced; beyond,
the slower ones are left out, and what only they would find survives."""

MEMORY = 6 << 30  # bytes of address space; a mutant that wants more is killed

SLOW_IMPORTS = ("boto3", "falcon", "httpx", "hypercorn", "prometheus_client")
"""Packages that a fork need not import again; nothing of `service`, which it must."""

OnOutcome = Callable[[Mutant, int], None]


def run(mutants: Sequence[Mutant], tests: Sequence[str], told: OnOutcome) -> None:
    """Run *tests* against each of the mutants, and tell each outcome."""
    left, seconds = _in_child(lambda: _Collected(mutants, tests), mutants, told)
    if left:
        _at_import(left, tests, seconds, told)


def _in_child(
    make: Callable[[], _Collected], mutants: Sequence[Mutant], told: OnOutcome
) -> tuple[list[Mutant], dict[str, float]]:
    """Run mutants in a child; return those left for import, and each test's seconds."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        status = 1
        try:
            plugin = make()
            plugin.report = open(writing, "w", buffering=1)  # noqa: SIM115
            status = plugin.main()
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(writing)
    left, seconds = [], {}
    with open(reading) as lines:
        for line in lines:
            number, outcome = json.loads(line)
            if number is None:
                seconds = outcome
            elif outcome == AT_IMPORT:
                left.append(mutants[number])
            else:
                told(mutants[number], outcome)
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit("the tests fail without a mutant, or their process died")
    return left, seconds


class _Collected:
    """A pytest plugin that runs mutants in place of the collected tests, once."""

    def __init__(self, mutants: Sequence[Mutant], tests: Sequence[str]) -> None:
        self.report: Any = None
        self._mutants = mutants
        self._tests = tests
        self._paths = {str(mutant.path) for mutant in mutants}
        self._reached: dict[str, dict[int, list[pytest.Item]]] = {}
        self._seconds: dict[str, float] = {}

    def main(self) -> int:
        return int(pytest.main([*ARGUMENTS, *self._tests], plugins=[self]))

    def pytest_sessionstart(self) -> None:
        _quick_hypothesis()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            session.shouldfail = "collection failed"
            raise session.Failed(session.shouldfail)
        session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        self._trace(session.items)
        functions = _functions(self._paths)
        gc.collect()
        gc.freeze()  # so that forks share it
        children = _Children(self._done)
        for number, mutant in enumerate(self._mutants):
            function = functions.get((str(mutant.path), mutant.first))
            if not mutant.function or function is None:
                self._done(number, AT_IMPORT)
                continue
            items = self._items(mutant)
            if not items:
                self._done(number, UNREACHED)
                continue
            seconds = sum(self._seconds[item.nodeid] for item in items)
            children.start(
                number,
                seconds,
                lambda m=mutant, f=function, i=items: _try(m, f, i),
            )
        children.wait()
        self._done(None, self._seconds)
        return True

    def _done(self, number: int | None, outcome: object) -> None:
        self.report.write(json.dumps([number, outcome]) + "\n")

    def _items(self, mutant: Mutant) -> list[pytest.Item]:
        """Return the tests that run the mutant's lines, the quickest first."""
        reached = self._reached.get(str(mutant.path), {})
        first, last = mutant.lines
        found = {
            item.nodeid: item
            for line in range(first, last + 1)
            for item in reached.get(line, ())
        }
        return _quickest(found.values(), self._seconds)

    def _trace(self, items: Sequence[pytest.Item]) -> None:
        """Run the tests in a fork, and learn which lines each of them runs."""
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            _mute()
            with open(writing, "w") as report:
                for number, item in enumerate(items):
                    began = time.process_time()
                    # A second time if need be: tracing is slow, and so is the machine.
                    lines = _lines_of(item, self._paths)
                    if lines is None:
                        lines = _lines_of(item, self._paths)
                    took = time.process_time() - began
                    report.write(json.dumps([number, took, lines]) + "\n")
            os._exit(0)
        os.close(writing)
        reached: dict[str, dict[int, list[pytest.Item]]] = defaultdict(
            lambda: defaultdict(list)
        )
        with open(reading) as report:
            for line in report:
                number, took, lines = json.loads(line)
                if lines is None:
                    pytest.exit(f"fails without a mutant: {items[number].nodeid}", 1)
                self._seconds[items[number].nodeid] = took
                for path, numbers in lines.items():
                    for each in numbers:
                        reached[path][each].append(items[number])
        os.waitpid(child, 0)
        self._reached = reached


# No capture, since forks write to nowhere; nothing that remembers between runs.
ARGUMENTS = (
    "-q",
    "-s",
    "-p",
    "no:xdist",
    "-p",
    "no:cacheprovider",
    "-o",
    "timeout=0",
    "-m",
    "not slow",
    "--tb=native",
    "--no-header",
    "--no-summary",
)


def _quick_hypothesis() -> None:
    """The same examples for each mutant, and none made smaller when one fails."""
    import hypothesis  # a plugin of pytest: not to be imported before it

    hypothesis.settings.register_profile(
        "mutation",
        parent=hypothesis.settings.get_profile("steadwire"),
        derandomize=True,
        database=None,
        max_examples=30,
        print_blob=False,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
    hypothesis.settings.load_profile("mutation")


def _lines_of(item: pytest.Item, paths: set[str]) -> dict[str, list[int]] | None:
    """Run a test; return the lines it ran of each file, None when it failed."""
    lines: dict[str, set[int]] = defaultdict(set)

    def local(frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            lines[frame.f_code.co_filename].add(frame.f_lineno)
        return local

    def each_call(frame: FrameType, _: str, __: object) -> Any:
        return local if frame.f_code.co_filename in paths else None

    threading.settrace(each_call)
    sys.settrace(each_call)
    try:
        passed = _passes(item)
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
    return {path: sorted(found) for path, found in lines.items()} if passed else None


def _passes(item: pytest.Item) -> bool:
    return not any(r.failed for r in runtestprotocol(item, log=False, nextitem=None))


def _quickest(
    items: Iterable[pytest.Item], seconds: dict[str, float]
) -> list[pytest.Item]:
    """Return tests, the quickest first, until they take long enough."""
    found, total = [], 0.0
    for item in sorted(items, key=lambda item: seconds.get(item.nodeid, 0.0)):
        total += seconds.get(item.nodeid, 0.0)
        if found and total > ENOUGH:
            break
        found.append(item)
    return found


def _functions(paths: set[str]) -> dict[tuple[str, int], FunctionType]:
    """Return the functions defined in files, by the line that each begins in."""
    return {
        (each.__code__.co_filename, each.__code__.co_firstlineno): each
        for each in gc.get_objects()
        if isinstance(each, FunctionType)
        and each.__code__.co_filename in paths
        and "<" not in each.__qualname__
    }


def _try(mutant: Mutant, function: FunctionType, items: list[pytest.Item]) -> int:
    """Put a mutant in the place of its function; return its outcome."""
    try:
        code = compile(mutant.source(), str(mutant.path), "exec")
    except SyntaxError:
        return BROKEN
    found = [
        each
        for each in _codes(code)
        if each.co_firstlineno == mutant.first and each.co_name == function.__name__
    ]
    try:
        function.__code__ = found[0]
    except (IndexError, ValueError):  # it has other free variables now
        return AT_IMPORT
    return SURVIVED if all(_passes(item) for item in items) else KILLED


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


class _Children:
    """Forks, a few at a time, each with its time limit."""

    def __init__(self, told: Callable[[int, int], None]) -> None:
        self._told = told
        self._running: dict[int, tuple[int, float]] = {}

    def start(self, number: int, seconds: float, work: Callable[[], int]) -> None:
        while len(self._running) >= PROCESSES:
            self._reap()
        limit = PATIENCE * seconds + PATIENCE
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            _confine(limit)
            outcome = BROKEN  # unless the tests were run to an end
            try:
                outcome = work()
            finally:
                os._exit(outcome)
        self._running[child] = number, time.monotonic() + 3 * limit

    def wait(self) -> None:
        while self._running:
            self._reap()

    def _reap(self) -> None:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in self._running:
            number, _ = self._running.pop(child)
            _kill(child)  # and what it has started
            self._told(number, _outcome(status))
            return
        now = time.monotonic()
        for child, (_, until) in self._running.items():
            if now > until:
                _kill(child)
        time.sleep(0.002)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _outcome(status: int) -> int:
    if os.WIFSIGNALED(status):
        by = os.WTERMSIG(status)
        return TIMEOUT if by in (signal.SIGXCPU, signal.SIGKILL) else KILLED
    return os.WEXITSTATUS(status)


def _confine(seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _mute()


def _mute() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)


def _at_import(
    mutants: Sequence[Mutant],
    tests: Sequence[str],
    seconds: dict[str, float],
    told: OnOutcome,
) -> None:
    """Import each of the mutants, and run all of the tests."""
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    children = _Children(lambda number, outcome: told(mutants[number], outcome))
    for number, mutant in enumerate(mutants):
        children.start(
            number, 60.0, lambda m=mutant: _import_and_try(m, tests, seconds)
        )
    children.wait()


def _import_and_try(
    mutant: Mutant, tests: Sequence[str], seconds: dict[str, float]
) -> int:
    sys.meta_path.insert(0, _Finder(mutant))
    arguments = [*ARGUMENTS, "-x", *tests]
    status = pytest.main(arguments, plugins=[_QuickFirst(seconds)])
    return SURVIVED if status == 0 else KILLED


class _QuickFirst:
    """A pytest plugin that puts quick tests first."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    def pytest_sessionstart(self) -> None:
        _quick_hypothesis()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = _quickest(items, self._seconds)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the mutant in the place of its module."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin != str(self._mutant.path):
            return None
        spec.loader = _Loader(fullname, spec.origin, self._mutant.source())
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, source: str) -> None:
        super().__init__(fullname, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.path, "exec")
