"""CloudFormation templates as objects, and the values that a stack would have."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Stack", "read_template"]


class _Loader(yaml.SafeLoader):
    """Reads the short forms of functions (``!Sub``) as the long ones (``Fn::Sub``)."""


def _function(loader: _Loader, name: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        if name == "GetAtt":
            value = value.split(".", 1)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    return {name if name in ("Ref", "Condition") else f"Fn::{name}": value}


_Loader.add_multi_constructor("!", _function)


def read_template(path: Path) -> dict[str, Any]:
    """Return a template with functions in their long form, to be changed at will."""
    return copy.deepcopy(_parsed(path.read_text()))


@functools.cache
def _parsed(text: str) -> dict[str, Any]:
    template: dict[str, Any] = yaml.load(text, _Loader)
    return template


class Stack:
    """A template with parameters: what its conditions and functions come to.

    What only AWS knows (an address, an ARN) stands as ``<Resource.Attribute>``.

    Args:
        template: As of `read_template`.
        parameters: Instead of their defaults; those without one are ``<Name>``.
    """

    def __init__(
        self, template: dict[str, Any], parameters: Mapping[str, object] | None = None
    ) -> None:
        self._template = template
        self._values: dict[str, Any] = {
            "AWS::AccountId": "111122223333",
            "AWS::Partition": "aws",
            "AWS::Region": "eu-central-1",
            "AWS::StackName": "steadwire",
            "AWS::URLSuffix": "amazonaws.com",
        }
        for name, about in template["Parameters"].items():
            self._values[name] = about.get("Default", f"<{name}>")
        self._values |= parameters or {}

    def resources(self, kind: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the resources of a type that are made, with their properties."""
        for name, resource in self._template["Resources"].items():
            if self._made(resource) and kind in ("", resource["Type"]):
                yield name, self.value(resource.get("Properties", {}))

    def properties(self, name: str) -> dict[str, Any]:
        """Return the properties of the resource *name*."""
        return dict(self.resources())[name]

    def outputs(self) -> dict[str, Any]:
        """Return the outputs that there are."""
        found = self._template["Outputs"]
        return {n: self.value(o["Value"]) for n, o in found.items() if self._made(o)}

    def value(self, node: Any) -> Any:
        """Return what a part of the template comes to."""
        if isinstance(node, list):
            values = [self.value(each) for each in node]
            return [each for each in values if each is not None]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            [(name, argument)] = node.items()
            if name == "Ref" or name.startswith("Fn::"):
                return self._call(name, argument)
        values = {name: self.value(each) for name, each in node.items()}
        return {name: each for name, each in values.items() if each is not None}

    def _call(self, name: str, argument: Any) -> Any:
        match name:
            case "Ref":
                return None if argument == "AWS::NoValue" else self._of(argument)
            case "Fn::GetAtt":
                return f"<{'.'.join(argument)}>"
            case "Fn::If":
                condition, yes, no = argument
                return self.value(yes if self._holds(condition) else no)
            case "Fn::Sub":
                text, own = argument if isinstance(argument, list) else (argument, {})
                values = {each: self.value(own[each]) for each in own}
                return re.sub(
                    r"\$\{([\w.:]+)\}",
                    lambda m: str(values.get(m[1]) or self._of(m[1])),
                    text,
                )
            case "Fn::Join":
                separator, parts = argument
                return separator.join(map(str, self.value(parts)))
        raise AssertionError(f"{name} is not known here")

    def _of(self, name: str) -> Any:
        return self._values.get(name, f"<{name}>")

    def _made(self, part: dict[str, Any]) -> bool:
        return "Condition" not in part or self._holds(part["Condition"])

    def _holds(self, condition: Any) -> bool:
        if isinstance(condition, str):
            return self._holds(self._template["Conditions"][condition])
        [(name, argument)] = condition.items()
        match name:
            case "Condition":
                return self._holds(argument)
            case "Fn::Equals":
                one, other = self.value(argument)
                return bool(str(one) == str(other))
            case "Fn::Not":
                return not self._holds(argument[0])
            case "Fn::And":
                return all(map(self._holds, argument))
            case "Fn::Or":
                return any(map(self._holds, argument))
        raise AssertionError(f"{name} is not known here")
