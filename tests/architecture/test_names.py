"""Old names stay out: each subject has one name, and it is the field's."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.sources import ROOT, Source, sources

# Old names, each with the one that replaces it. A leading underscore makes no
# difference.

# Classes: neither defined nor imported nor mentioned, in the package, tests or pages.
CLASSES = {
    "Admission": "ConnectionLimits",
    "Alarm": "DeadlineTimer",
    "Allowance": "CommandQuota",
    "Attendance": "ClusterSync",
    "Book": "ChannelStateCache",
    "Combiner": "ChannelAppender",
    "Demand": "ReadRequest",
    "Desk": "CommitSink",
    "Door": "HandshakeGate",
    "Driver": "ClientConnection",
    "Flight": "InFlightRead",
    "Intake": "AppendBudget",
    "Keeping": "Runtime",
    "Meter": "PublishMetrics",
    "Pace": "CommandScheduler",
    "Parking": "GracePeriod",
    "Parts": "Session",
    "Probing": "WriteHealth",
    "Room": "ReadGate",
    "Seam": "ConnectionTracker",
    "Services": "Runtime",
    "Shelf": "StateTable",
    "Sweep": "Reaper",
    "Timeline": "LifecycleLog",
    "Turn": "CoalescedCall",
    "Turns": "KeyedLock",
    "View": "ChannelCache",
    "Visit": "PendingConnection",
    "Watch": "LoopMonitor",
    "Work": "CommandQueue",
}

# Classes that are banned in one folder of the package: elsewhere the word is right.
CLASSES_IN = {
    ("Entry", "session"): "ChannelState",
    ("Listener", "hub"): "SubscriberInfo",
    ("Pending", "session"): "PendingSubscribe",
}

# Functions, attributes, parameters and variables: nowhere in Python, and not as a word
# of a file's name.
IDENTIFIERS = {
    "attendance": "cluster_sync",
    "bury": "reap",
    "chance": "rng",
    "combiner": "appender",
    "door": "gate",
    "driver": "connection",
    "drivers": "connections",
    "exorcise": "drop_orphans",
    "ghosts": "orphans",
    "intake": "budget",
    "keeping": "runtime",
    "landed": "done",
    "learn": "apply_failure",
    "mend": "repair",
    "noticed": "observed",
    "parking": "grace_period",
    "seam": "tracker",
    "see_off": "end",
    "shelf": "state_table",
    "strangers": "orphans",
    "visit": "pending",
    "visits": "pending",
}

# Functions and methods that the package does not define; variables may have the name.
FUNCTIONS = {
    "outcomes": "errors",
    "pages": "query_all",
    "several": "gather_limited",
}

# Modules and folders of the package.
MODULES = {
    "actions",
    "admission",
    "allowance",
    "asking",
    "attendance",
    "book",
    "combiner",
    "describing",
    "desk",
    "door",
    "driver",
    "intake",
    "keeping",
    "loading",
    "making",
    "outcomes",
    "pace",
    "pages",
    "parking",
    "parts",
    "probing",
    "seam",
    "services",
    "several",
    "shelf",
    "sizes",
    "sweep",
    "timeline",
    "turns",
    "view",
    "visit",
    "watch",
    "web",
    "work",
}

PYTHON = ("service", "tests", "benchmarks")
PAGES = ("docs", "infra", "README.md", "CONTRIBUTING.md", "SECURITY.md")

_SPAN = re.compile(r"``([^`]+)``|`([^`]+)`")
_WORD = re.compile(r"\w+")


def test_names_that_are_gone_are_not_used() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for name, place in _uses():
        found[name].add(place)
    faults = [
        f"{name}: {', '.join(sorted(places))}" for name, places in sorted(found.items())
    ]
    assert not faults, "\n".join(faults)


def _uses() -> Iterator[tuple[str, str]]:
    """Return each old name that is used, with the file that uses it."""
    for source in sources(*PYTHON):
        place = source.path.relative_to(ROOT).as_posix()
        if source.path.samefile(__file__):
            continue
        for name in _names(source):
            yield name, place
    for page in _pages():
        for name in _mentioned(page.read_text(encoding="utf-8")):
            yield name, page.relative_to(ROOT).as_posix()


def _names(source: Source) -> Iterator[str]:
    ours = source.name.startswith("service.")
    if ours:
        for part in source.name.split(".")[1:]:
            if part in MODULES:
                yield f"module {part}"
    for word in source.path.stem.split("_"):
        if word in IDENTIFIERS:
            yield f"{word} in a file's name"
    for identifier in _identifiers(source):
        if identifier in CLASSES or identifier in IDENTIFIERS:
            yield identifier
        elif ours and (identifier, source.unit) in CLASSES_IN:
            yield f"{identifier} in {source.unit}"
    for node in source.nodes:
        if ours and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = node.name.strip("_")
            if name in FUNCTIONS:
                yield f"{name}()"
    yield from _mentioned(source.text)


def _identifiers(source: Source) -> Iterator[str]:
    for node in source.nodes:
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name.strip("_")
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield name.strip("_")
            case ast.AsyncFunctionDef(name=name) | ast.alias(name=name):
                yield name.rpartition(".")[2].strip("_")
            case ast.keyword(arg=str(name)):
                yield name.strip("_")


def _mentioned(text: str) -> Iterator[str]:
    """Return the old classes and modules that code spans of a text name."""
    for match in _SPAN.finditer(text):
        span = match[1] or match[2]
        if "\n" in span or " " in span:
            continue
        for word in _WORD.findall(span):
            if word in CLASSES:
                yield word
        if span.endswith(".py") and (stem := span[:-3].rpartition("/")[2]) in MODULES:
            yield f"module {stem}"


def _pages() -> Iterator[Path]:
    for name in PAGES:
        path = ROOT / name
        yield from sorted(path.rglob("*.md")) if path.is_dir() else (path,)
