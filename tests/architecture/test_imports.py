"""Who may import whom: imports point inward only (ARCHITECTURE.md, Files)."""

from __future__ import annotations

import sys

import pytest

from tests.architecture.sources import OURS, Source, imports, sources

CORE = {"errors", "metrics", "model", "ports", "settings"}

# Beside itself, each unit may import the units named. Where a row has more than the
# design's table, the reason stands beside it.
MAY_IMPORT: dict[str, set[str]] = {
    "_speedups": set(),
    "errors": set(),
    "health": set(),
    "logs": {"errors", "settings"},
    "metrics": {"errors"},  # the codes
    "model": {"errors"},
    "address": {"errors"},
    "origins": {"errors"},
    "limits": {"errors"},
    "refusals": set(),
    # model.Override; it checks what they are made of.
    "settings": {"errors", "model", "address", "origins"},
    "ports": {"errors", "model"},
    "clock": {"ports"},
    "handlers": {"errors", "model"},
    "protocol": {"errors", "model", "ports", "_speedups"},  # ports.Encoding
    "payload": {
        "errors",
        "model",
        "handlers",
        "_speedups",
    },  # handlers.Raw is a payload
    "recovery": {"errors", "model"},
    "permissions": CORE,  # ports.History is what a namespace comes to
    # The session asks hooks and dumps what they say; ports.History passes through it.
    # _speedups: the filter of ping times.
    "heartbeat": {"errors", "model"},
    "session": CORE
    | {
        "auth",
        "handlers",
        "heartbeat",
        "limits",
        "payload",
        "permissions",
        "protocol",
        "_speedups",
    },
    "authenticator": CORE | {"auth", "handlers"},
    "registry": {"errors", "model", "ports", "session"},  # session.Identity
    "parking": {"errors", "model", "ports"},
    # session.Identity
    "admission": CORE | {"limits", "parking", "registry", "session"},
    "attendance": CORE | {"admission", "registry"},
    "sweep": CORE | {"health", "registry", "session"},
    "hub": CORE | {"protocol", "recovery"},  # settings: its bounds
    "outbox": CORE,  # settings: its bounds
    "auth": CORE | {"_speedups"},  # ports: tickets and revocations stand in a State
    "breaker": {"errors", "model", "ports", "_speedups"},  # the clock; the backoff
    # settings: path, bounds; the backoff.
    "stores": CORE | {"breaker", "_speedups"},
    "transports": CORE
    | {
        "admission",
        "address",
        "attendance",
        "auth",
        "handlers",
        "heartbeat",
        "health",
        "hub",
        "limits",
        "outbox",
        "parking",
        "payload",
        "permissions",
        "protocol",
        "recovery",
        "refusals",
        "registry",
        "session",
        "sweep",
    },
    "web": CORE
    | {
        "admission",
        "auth",
        "authenticator",
        "handlers",
        "health",
        "heartbeat",
        "hub",
        "logs",
        "payload",
        "permissions",
        "protocol",
        "recovery",
        "refusals",
        "registry",
        "session",
        "transports",
        "_speedups",
    },
    "server": {"address", "errors", "refusals", "settings"},
}

# Composition: these may import everything.
FREE = {"app", "cli", "doctor", "__main__"}

# A third party's exceptions stop at the modules that import it, so it has few.
THIRD_PARTIES: dict[str, set[str]] = {
    "boto3": {"stores"},
    "botocore": {"stores"},
    "click": {"cli"},
    "cryptography": {"auth"},
    "falcon": {"app", "transports", "web"},
    "google": {"protocol"},  # protobuf, the other form of the wire
    "httpx": {"web"},
    "hypercorn": {"server"},
    "jwt": {"auth"},
    "prometheus_client": {"metrics"},
    # It validates what comes from outside; `protocol` reads with it what it wrote, and
    # DynamoDB's store packs.
    "msgspec": {"auth", "protocol", "settings", "stores", "web"},
    "sqlite3": {"stores"},
    "structlog": {
        "app",
        "cli",
        "logs",
        "refusals",
        "server",
        "stores",
        "sweep",
        "transports",
        "web",
    },
    "ujson": {"payload", "web"},
    "uvloop": {"server"},
    "wsproto": {"server"},
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
    assert source.unit in MAY_IMPORT, "a new unit needs a row in the table"
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


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    # At import time: what is inside a function is not run then.
    modules = {source.name: source for source in sources(*OURS)}
    imported: dict[str, set[str]] = {}
    for source in modules.values():
        top_level = {node.lineno for node in source.tree.body}
        imported[source.name] = {
            module
            for each in imports(source)
            if each.line in top_level
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
