"""The sources of the packages, parsed once: who imports what, and what is offered."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
OURS = ("service", "_speedups")


class Source:
    """One module; it is read and parsed when it is first asked for more than names.

    Attributes:
        path: Its file.
        name: Dotted, a package's without ``__init__``.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name

    @cached_property
    def text(self) -> str:
        """What the file has."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        """The text, parsed."""
        with _no_garbage():
            return ast.parse(self.text)

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """All nodes of the tree, as `ast.walk` finds them."""
        return tuple(ast.walk(self.tree))

    def forget(self) -> None:
        """Free what was read and parsed."""
        for name in ("text", "tree", "nodes"):
            vars(self).pop(name, None)

    @property
    def unit(self) -> str:
        """The row of the import table: the first name below ``service``."""
        parts = self.name.split(".")
        return parts[1] if parts[0] == "service" and len(parts) > 1 else parts[0]

    @property
    def package(self) -> str:
        """The package that a relative import starts from."""
        if self.path.name == "__init__.py":
            return self.name
        return self.name.rpartition(".")[0]


class Import(NamedTuple):
    """One imported name: *name* is "" for ``import module``."""

    importer: str
    module: str
    name: str
    asname: str
    line: int


def sources(*folders: str) -> tuple[Source, ...]:
    """Return the modules below *folders* of the repository."""
    return tuple(source for folder in folders for source in parsed(folder))


@cache
def parsed(folder: str) -> tuple[Source, ...]:
    """Return the modules below *folder*; conftest.py forgets them after each module."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path.name.endswith("_pb2.py"):
            continue  # generated
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found.append(Source(path, ".".join(parts)))
    return tuple(found)


def forget() -> None:
    """Free the texts and the trees of all modules: hundreds of megabytes."""
    for folder in ("service", "_speedups", "tests", "benchmarks"):
        for source in parsed(folder):
            source.forget()


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Make objects that stay: looking through them for garbage takes most of the time.

    They are trees, so that they are freed when they are forgotten.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def imports(source: Source) -> Iterator[Import]:
    """Return every import of a module, those inside functions too."""
    for node in source.nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(
                    source.name,
                    alias.name,
                    "",
                    alias.asname or alias.name,
                    node.lineno,
                )
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = source.package.split(".")
                base = base[: len(base) - node.level + 1]
                module = ".".join([*base, module] if module else base)
            for alias in node.names:
                yield Import(
                    source.name,
                    module,
                    alias.name,
                    alias.asname or alias.name,
                    node.lineno,
                )


def offered(source: Source) -> list[str] | None:
    """Return what ``__all__`` says, or None without one."""
    for node in source.tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id == "__all__":
                    names: list[str] = ast.literal_eval(node.value)
                    return names
    return None


def called(source: Source) -> Iterator[tuple[str, int]]:
    """Return the dotted names of all calls, as ``time.time``, with their lines."""
    for node in source.nodes:
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno
