"""Rules for each module: size, docstring, ``__all__``, and no I/O in the core."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.architecture.sources import (
    OURS,
    Source,
    called,
    imports,
    offered,
    sources,
)

SERVICE = sources("service")

# The units that do I/O, or compose. All the rest of the package is the core.
OUTSIDE = {
    "broker",
    "agents",
    "app",
    "cli",
    "foundation",
    "gateway_runtime",
    "lambda_entry",
    "runtime",
    "__main__",
    "connections",
    "demo",
    "dev_gateway",
    "gateway",
    "http",
    "logs",
    "server",
    "stores",
    "transports",
}

# Modules of the core that do I/O all the same: what they fetch is theirs alone, and so
# are the threads of the encoder.
FETCHING = {"service.auth.jwks", "service.core.fetch", "service.payload.encoder"}

# Modules that the core may not import; beside each, the exceptions and their reasons.
IO: dict[str, set[str]] = {
    "asyncio": {
        "service.core.clock",  # timers of the running loop
        "service.core.keyed_lock",  # locks of the running loop
        "service.core.waiter",  # futures of the running loop
    },
    "os": {"service.payload.strategies"},  # the type os.PathLike
    "pathlib": {  # the one reader of the settings file
        "service.settings.load",
        "service.settings.sources",
    },
    "random": set(),  # the type `Random` is let through below
    "secrets": set(),
    "select": set(),
    "shutil": set(),
    "signal": set(),
    "socket": set(),
    "sqlite3": set(),
    "subprocess": set(),
    "sys": set(),
    "tempfile": set(),
    "threading": set(),
    "time": {"service.core.clock", "service.payload"},  # its one serializer's clock
    "urllib.request": set(),
    "uuid": set(),  # the type `UUID` is let through below
    "http": set(),
}

# Names that are offered though nobody here imports them.
SPARE = {
    "service.agents": {"Run"},  # for applications that have an agent in Python
    "service.app": {"Application", "app"},  # a result's type; stock servers import app
    "service.hub.hub": {"JoinDone"},  # a parameter's type
    "service.payload": {"dump"},  # for applications that encode in a thread of theirs
    "service.connections.pending_connection": {"Gate"},  # a parameter's type
    "service.dev_gateway.emulator": {"Integration"},  # a parameter's type
    "service.lambda_entry": {"handler", "make_handler"},  # named to Lambda
    "service.server": {"Application"},
    "service.settings": {"Namespace", "ProxySettings"},  # for those who mount us
    "service.stores.sqlite.schema": {"MEMORY"},
}


def core() -> list[Source]:
    return [
        source
        for source in SERVICE
        if source.unit not in OUTSIDE and source.name not in FETCHING
    ]


@pytest.mark.parametrize("source", SERVICE, ids=lambda s: s.name)
def test_a_module_has_one_subject_and_at_most_700_lines(source: Source) -> None:
    lines = source.text.count("\n")
    assert lines <= 700, f"{lines} lines: does it have two subjects?"


@pytest.mark.parametrize("source", SERVICE, ids=lambda s: s.name)
def test_a_module_says_what_it_is_in_one_sentence(source: Source) -> None:
    doc = ast.get_docstring(source.tree)
    assert doc, "no docstring"
    first = doc.split("\n\n")[0]
    assert first.endswith((".", ":")), first
    assert "\n" not in first, first


@pytest.mark.parametrize("source", core(), ids=lambda s: s.name)
def test_the_core_does_no_io(source: Source) -> None:
    for each in imports(source):
        if (each.module, each.name) in (("random", "Random"), ("uuid", "UUID")):
            continue  # types: chance itself is passed in
        for banned, exempt in IO.items():
            if each.module == banned or each.module.startswith(banned + "."):
                assert source.name in exempt, each
    for name, line in called(source):
        assert name not in ("open", "print", "input", "exec", "eval"), (name, line)
        assert not name.endswith((".today", ".utcnow", "datetime.now")), (name, line)


@pytest.mark.parametrize("source", SERVICE, ids=lambda s: s.name)
def test_only_the_composition_hands_over_the_environment(source: Source) -> None:
    if source.unit in ("app", "cli", "lambda_entry", "runtime"):
        return
    for node in source.nodes:
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("environ", "getenv"), node.lineno


@pytest.mark.parametrize("source", SERVICE, ids=lambda s: s.name)
def test_no_assertion_is_needed_at_run_time_to_be_safe(source: Source) -> None:
    # `assert` may narrow a type; what must hold raises AssertionError by name.
    for node in source.nodes:
        if isinstance(node, ast.Assert):
            text = ast.unparse(node.test)
            assert "is not None" in text or "isinstance" in text, (text, node.lineno)


def test_every_name_imported_elsewhere_is_offered_and_no_other() -> None:
    modules = {source.name: source for source in sources(*OURS)}
    used: dict[str, set[str]] = defaultdict(set)
    for source in sources(*OURS, "tests", "benchmarks"):
        for module, name in _uses(source, modules):
            used[module].add(name)
    faults = []
    for name, source in modules.items():
        listed = set(offered(source) or ())
        # A module that bears the name of what its package offers is the module.
        names = {n for n in used[name] if n in listed or f"{name}.{n}" not in modules}
        if source.unit == "_speedups":
            continue  # a chooser and its twins: offered for the compiled side too
        # Private names, and generated modules, which are no `sources`.
        names = {n for n in names if not n.startswith("_") and not n.endswith("_pb2")}
        if names - listed:
            faults.append(f"{name} does not offer {sorted(names - listed)}")
        spare = listed - names - SPARE.get(name, set())
        if name == "service.core.errors":
            spare = {n for n in spare if not n.isupper()}  # the wire tables are whole
        if spare:
            faults.append(f"{name} offers {sorted(spare)} to nobody")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("source", SERVICE, ids=lambda s: s.name)
def test_what_is_offered_is_there(source: Source) -> None:
    names = offered(source)
    if names is None:
        return
    assert len(names) == len(set(names)), "a name twice"
    bound = set(_bound(source.tree))
    assert set(names) <= bound, sorted(set(names) - bound)


def _uses(source: Source, modules: dict[str, Source]) -> Iterator[tuple[str, str]]:
    aliases: dict[str, str] = {}
    for each in imports(source):
        whole = f"{each.module}.{each.name}" if each.name else each.module
        package = modules.get(each.module)
        named = package is not None and each.name in (offered(package) or ())
        if whole in modules and not named:
            aliases[each.asname] = whole
        elif each.module in modules and each.module != source.name:
            yield each.module, each.name
    for node in source.nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = aliases.get(node.value.id)
            if module is not None and module != source.name:
                yield module, node.attr


def _bound(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (t.id for t in targets if isinstance(t, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name for alias in names)
