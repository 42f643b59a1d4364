"""Which folder may import which: imports point inward only."""

from __future__ import annotations

import ast
import sys

import pytest

from tests.architecture.sources import OURS, Source, imports, sources

# Beside itself, each folder may import the folders named.
MAY_IMPORT: dict[str, set[str]] = {
    "_speedups": set(),
    "core": {"_speedups"},
    "settings": {"core"},
    "metrics": {"core"},
    "logs": {"core", "settings"},
    "payload": {"core", "_speedups"},
    "protocol": {"core", "_speedups"},
    "auth": {"core", "settings", "_speedups"},
    "session": {
        "auth",
        "core",
        "metrics",
        "payload",
        "protocol",
        "settings",
        "_speedups",
    },
    "hub": {"core", "metrics", "protocol", "settings", "_speedups"},
    "stores": {"core", "metrics", "settings", "_speedups"},
    "broker": {"core", "metrics", "settings"},
    "connections": {
        "_speedups",
        "auth",
        "core",
        "hub",
        "metrics",
        "payload",
        "protocol",
        "session",
        "settings",
    },
    "agents": {"core", "hub", "settings", "_speedups"},
    "gateway": {
        "auth",
        "connections",
        "core",
        "metrics",
        "payload",
        "protocol",
        "session",
        "settings",
        "_speedups",
    },
    "transports": {
        "connections",
        "core",
        "gateway",
        "protocol",
        "session",
        "settings",
    },
    "http": {
        "agents",
        "auth",
        "connections",
        "core",
        "demo",
        "gateway",
        "hub",
        "logs",
        "metrics",
        "payload",
        "protocol",
        "session",
        "settings",
        "runtime",
        "transports",
        "_speedups",
    },
    "foundation": {
        "auth",
        "broker",
        "core",
        "metrics",
        "payload",
        "settings",
        "stores",
    },
    "gateway_runtime": {
        "connections",
        "core",
        "foundation",
        "gateway",
        "session",
        "settings",
        "stores",
    },
    "runtime": {
        "agents",
        "auth",
        "connections",
        "core",
        "foundation",
        "gateway_runtime",
        "hub",
        "metrics",
        "payload",
        "session",
        "settings",
        "stores",
        "transports",
    },
    "server": {"core", "settings", "_speedups"},
    "dev_gateway": {"core"},
    "demo": {"core"},
}

# Composition: these may import everything.
FREE = {"app", "cli", "lambda_entry", "__main__"}

# The whole of `service`: nothing loose beside the folders.
LOOSE = {
    "app",
    "foundation",
    "gateway_runtime",
    "lambda_entry",
    "runtime",
    "__init__",
    "__main__",
}

# A third party's exceptions stop at the modules that import it, so it has few.
THIRD_PARTIES: dict[str, set[str]] = {
    "ag_ui": {"agents"},
    "botocore": {"cli", "gateway", "gateway_runtime", "stores"},
    "click": {"cli"},
    "cryptography": {"auth"},
    "falcon": {"app", "demo", "transports", "http"},
    "google": {"protocol"},  # protobuf, the other form of the wire
    "h11": {"dev_gateway", "gateway", "server"},
    "h2": {"server"},
    "httpx": {"auth", "core", "dev_gateway", "http"},
    "hypercorn": {"server"},
    "jwt": {"auth"},
    "priority": {"server"},
    "prometheus_client": {"metrics"},
    "re2": {"core"},  # patterns of channel names
    "redis": {"broker"},
    # It validates what comes from outside; `protocol` reads with it what it wrote, and
    # DynamoDB's store packs.
    "msgspec": {
        "agents",
        "auth",
        "connections",
        "broker",
        "core",
        "gateway",
        "gateway_runtime",
        "http",
        "protocol",
        "session",
        "settings",
        "stores",
    },
    "pydantic": {"agents"},  # with ag_ui
    "sqlite3": {"stores"},
    "structlog": {
        "agents",
        "app",
        "auth",
        "broker",
        "cli",
        "connections",
        "core",
        "demo",
        "foundation",
        "gateway",
        "http",
        "lambda_entry",
        "logs",
        "server",
        "stores",
        "transports",
    },
    "ujson": {"payload", "http"},
    "uvloop": {"server"},
    "wsproto": {"dev_gateway", "server"},
}


def unit(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "service" and len(parts) > 1 else parts[0]


def names(module: str, name: str) -> str:
    # `from service import server` imports a unit, not a name of one.
    return f"{module}.{name}" if module == "service" else module


@pytest.mark.parametrize("source", sources(*OURS), ids=lambda s: s.name)
def test_imports_point_inward(source: Source) -> None:
    if source.unit in FREE or source.name == "service":
        return
    assert source.unit in MAY_IMPORT, "a new folder needs a row in the table"
    allowed = MAY_IMPORT[source.unit] | {source.unit}
    for each in imports(source):
        if each.module.split(".")[0] in OURS:
            assert unit(names(each.module, each.name)) in allowed, each


@pytest.mark.parametrize("source", sources("service"), ids=lambda s: s.name)
def test_third_parties_are_imported_where_the_table_says(source: Source) -> None:
    for each in imports(source):
        top = each.module.split(".")[0]
        if top in THIRD_PARTIES:
            assert source.unit in THIRD_PARTIES[top], each
        else:
            assert top in sys.stdlib_module_names or top in OURS, each


def test_the_table_itself_has_no_circle() -> None:
    done: set[str] = set()
    left = dict(MAY_IMPORT)
    while left:
        ready = {name for name, may in left.items() if may <= done}
        assert ready, f"these import each other: {sorted(left)}"
        done |= ready
        for name in ready:
            del left[name]


def in_functions(source: Source) -> set[int]:
    """Return the lines of the imports that wait for a call."""
    return {
        node.lineno
        for function in source.nodes
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    # Imports under TYPE_CHECKING count; those inside functions run later.
    modules = {source.name: source for source in sources(*OURS)}
    imported: dict[str, set[str]] = {}
    for source in modules.values():
        later = in_functions(source)
        imported[source.name] = {
            module
            for each in imports(source)
            if each.line not in later
            for module in (each.module, f"{each.module}.{each.name}")
            if module in modules and module != source.name
        }
    done: set[str] = set()
    while len(done) < len(modules):
        ready = {
            name
            for name, others in imported.items()
            if name not in done
            # A package's own __init__ may gather its modules, and they know its name.
            and all(o in done or name.startswith(o + ".") for o in others)
        }
        assert ready, sorted(modules.keys() - done)
        done |= ready


def test_the_speedups_import_nothing_of_ours() -> None:
    for source in sources("_speedups"):
        for each in imports(source):
            assert not each.module.startswith("service"), each
