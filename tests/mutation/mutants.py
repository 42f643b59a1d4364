"""Mutants of one source file, by mutmut's operators and two of our own.

Ours are those that mutmut lacks: a call whose result nobody uses is left out, and a
bare condition is negated. Not mutated is what no test should pin down: annotations,
decorators, docstrings, ``__all__``, ``__slots__``, aliases of types, arguments of log
calls, and the texts of AssertionError for what cannot happen.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import libcst as cst
import libcst.matchers as m
from libcst.metadata import (
    MetadataWrapper,
    PositionProvider,
    WhitespaceInclusivePositionProvider,
)
from mutmut.mutation.mutators import mutation_operators

__all__ = ["Mutant", "mutants_of"]

# Calls whose arguments are for people who read logs, or for type checkers.
SPARED_CALLS = m.Call(
    func=m.Attribute(value=m.Name("log"))
    | m.Attribute(attr=m.Name("get_logger"))
    | m.Name("AssertionError")
    | m.Name("cast")
    | m.Name("isinstance")
)
SPARED_NAMES = {"__all__", "__slots__"}
Node = cst.CSTNode


@dataclass(frozen=True)
class Mutant:
    """A source file with one change.

    Attributes:
        key: The same in each run while the function around it is the same.
        path: The file.
        function: Its outermost function; "" for what runs at import.
        first: The first line of that function, decorators included.
        lines: The lines that run the changed code, first and last.
        change: The change, for people.
    """

    key: str
    path: Path
    function: str
    first: int
    lines: tuple[int, int]
    change: str
    tree: cst.Module
    text: str
    span: tuple[int, int]
    node: Node
    replacement: Node

    def source(self) -> str:
        """Return the changed text of the file."""
        # To put text in takes 1 ms, to make the tree anew 200; but text of compound
        # statements would have to be indented.
        if not isinstance(self.node, cst.BaseCompoundStatement):
            first, last = self.span
            new = self.tree.code_for_node(self.replacement)
            return self.text[:first] + new + self.text[last:]
        changed = self.tree.deep_replace(self.node, self.replacement)
        assert isinstance(changed, cst.Module)
        return changed.code


def mutants_of(path: Path) -> list[Mutant]:
    """Return the mutants of a file, in the order of its lines."""
    wrapper = MetadataWrapper(cst.parse_module(path.read_text(encoding="utf-8")))
    search = _Search(path, wrapper)
    search.look_at(wrapper.module)
    return search.found


class _Search:
    def __init__(self, path: Path, wrapper: MetadataWrapper) -> None:
        self.found: list[Mutant] = []
        self._path = path
        self._tree = wrapper.module
        self._positions = wrapper.resolve(PositionProvider)
        self._spans = wrapper.resolve(WhitespaceInclusivePositionProvider)
        self._text = self._tree.code
        lines = self._text.splitlines(keepends=True)
        self._offsets = [0, *accumulate(map(len, lines))]  # of each line
        self._above: list[Node] = []  # and the node itself
        self._keys: Counter[str] = Counter()

    def look_at(self, node: Node) -> None:
        """Add the mutants of a node and of those below it."""
        if _is_spared(node) or self._is_default(node):
            return
        self._above.append(node)
        for mutated in _mutated(node):
            self._add(node, mutated)
        if not m.matches(node, SPARED_CALLS):
            for child in node.children:
                self.look_at(child)
        self._above.pop()

    def _is_default(self, node: Node) -> bool:
        """Return whether it is a default that a mutant may break at import."""
        return (
            isinstance(node, cst.Param)
            and node.default is not None
            and not isinstance(
                node.default, cst.Name | cst.BaseNumber | cst.SimpleString
            )
        )

    def _add(self, node: Node, mutated: Node) -> None:
        functions = [n for n in self._above if isinstance(n, cst.FunctionDef)]
        function = functions[0] if functions else None
        if function and not any(part is function.body for part in self._above):
            function = None  # a default or so: it runs where the function is defined
        names = [n.name.value for n in self._above if isinstance(n, cst.ClassDef)]
        names += [n.name.value for n in functions]
        code = self._tree.code_for_node
        change = f"{_short(code(node))} → {_short(code(mutated)) or 'nothing'}"
        if isinstance(node, cst.If):
            change = f"if {_short(code(node.test))} → if not …"
        body = code(function) if function else code(self._statement())
        key = hashlib.sha1(
            "\0".join(
                (self._path.name, ".".join(names), body, code(node), code(mutated))
            ).encode()
        ).hexdigest()[:16]
        self._keys[key] += 1
        first = 0
        if function:
            top = function.decorators[0] if function.decorators else function
            first = self._position(top)[0]
        self.found.append(
            Mutant(
                f"{key}-{self._keys[key]}",
                self._path,
                ".".join(names) if function else "",
                first,
                self._lines(node),
                f"{'.'.join(names) or 'module'}: {change}",
                self._tree,
                self._text,
                self._span(node),
                node,
                mutated,
            )
        )

    def _position(self, node: Node) -> tuple[int, int]:
        found = self._positions[node]
        return found.start.line, found.end.line

    def _span(self, node: Node) -> tuple[int, int]:
        """Return the offsets of its text, with the spaces that belong to it."""
        span = self._spans[node]
        first, last = (
            self._offsets[each.line - 1] + each.column
            for each in (span.start, span.end)
        )
        return first, last

    def _statement(self) -> Node:
        for node in reversed(self._above):
            if isinstance(node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
                return node
        return self._above[-1]

    def _lines(self, node: Node) -> tuple[int, int]:
        """Return the lines of the statement, or of the head of a compound one."""
        if isinstance(node, cst.If):
            return self._position(node.test)
        for each in reversed(self._above):
            if isinstance(each, cst.SimpleStatementLine):
                return self._position(each)
            if isinstance(each, cst.BaseCompoundStatement):
                break
        return self._position(node)


def _mutated(node: Node) -> Iterable[Node]:
    if not m.matches(node, SPARED_CALLS):
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                for mutated in list(operator(node))[: _most(node)]:
                    if not _shifts(node, mutated):
                        yield mutated
    yield from _left_out(node)
    yield from _negated(node)


def _shifts(node: Node, mutated: Node) -> bool:
    """Return whether arguments take each other's places: any call notices that."""
    match node, mutated:
        case cst.Call(args=old), cst.Call(args=new) if len(new) < len(old):
            places = [each for each in old if each.keyword is None and not each.star]
            return any(each not in new for each in places[:-1])
    return False


def _most(node: Node) -> int | None:
    """Return how many mutants of a node are worth trying: None for all."""
    match node:
        case cst.BaseString():
            return 1  # other letter cases tell no more than any other text
        case (
            cst.Assign(value=cst.Name(value="False"))
            | cst.AnnAssign(value=cst.Name(value="False"))
        ):
            return 0  # None is as false; there is a mutant that has True
        case cst.Assign(
            value=cst.Call(func=cst.Attribute(attr=cst.Name(value="auto")))
        ):
            return 0  # a member of an enum is itself, whatever its value
        case cst.Assign(
            targets=[cst.AssignTarget(target=cst.Subscript())],
            value=cst.Name(value="None"),
        ):
            return 0  # a dict that is an ordered set
    return None


def _left_out(node: Node) -> Iterator[Node]:
    if m.matches(node, m.Expr(m.Call() | m.Await(m.Call()))):
        yield cst.Pass()


def _negated(node: Node) -> Iterator[Node]:
    if isinstance(node, cst.If) and m.matches(
        node.test, m.Name() | m.Attribute() | m.Call()
    ):
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), node.test))


def _is_spared(node: Node) -> bool:
    match node:
        case (
            cst.Annotation()
            | cst.Decorator()
            | cst.Import()
            | cst.ImportFrom()
            | cst.Assert()
        ):
            return True
        case cst.Expr(value=cst.BaseString()):
            return True  # a docstring
        case cst.ClassDef(bases=[cst.Arg(value=cst.Name(value="Protocol"))]):
            return True  # it is for the type checker alone
        case cst.Assign(
            value=cst.Call(func=cst.Name(value="NewType" | "TypeVar" | "ParamSpec"))
        ):
            return True
        case cst.Assign(targets=[cst.AssignTarget(target=cst.Name(value=name))]):
            return name in SPARED_NAMES or _is_type(node.value)
    return False


def _is_type(value: Node) -> bool:
    """Return whether it looks like a type: ``Callable[[str], None]``, ``A | B``."""
    match value:
        case cst.Subscript(value=cst.Name(value=name)):
            return name[0].isupper() or name in ("dict", "list", "tuple")
        case cst.BinaryOperation(operator=cst.BitOr(), left=left, right=right):
            return _is_type(left) or _is_type(right)
    return False


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:99] + "…"
