"""Tests read no private attribute of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.architecture.sources import ROOT, Source, sources


def test_no_test_reads_a_private_attribute_of_the_package() -> None:
    private = {name for source in sources("service") for name in _defined(source)}
    found = {
        f"{source.path.relative_to(ROOT).as_posix()}: {name}"
        for source in sources("tests", "benchmarks")
        # A class of the tests may have an attribute of the same name.
        for name in _read(source) - set(_defined(source))
        if name in private
    }
    assert not found, "\n".join(sorted(found))


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _defined(source: Source) -> Iterator[str]:
    """Return the private names that a module defines, at its top or in a class."""
    for node in source.nodes:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                found = name
            case ast.AsyncFunctionDef(name=name):
                found = name
            case ast.Name(id=name, ctx=ast.Store()):
                found = name
            case ast.Attribute(attr=name, ctx=ast.Store()):
                found = name
            case _:
                continue
        if _is_private(found):
            yield found


def _read(source: Source) -> set[str]:
    """Return the private attributes that a module reads of others than itself."""
    found = set()
    for node in source.nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name) if _is_private(name):
                found.add(name)
            case ast.ImportFrom(module=str(module), names=names):
                if module.split(".")[0] == "service":
                    found |= {a.name for a in names if _is_private(a.name)}
            # By name: getattr(it, "_name"), monkeypatch.setattr(it, "_name", …).
            case ast.Call(func=func, args=[_, ast.Constant(value=str(name)), *_]):
                if ast.unparse(func).endswith(("getattr", "setattr")) and _is_private(
                    name
                ):
                    found.add(name)
    return found
