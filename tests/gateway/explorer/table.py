"""A DynamoDB table in memory, with what the store's expressions can say.

Each call is one atomic step. Only what the log, the leases and the rows use is known
here; anything else is an error, so that nothing is silently taken for true.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from service.stores.dynamodb.errors import (
    ConditionFailed,
    Item,
    Reason,
    TransactionCancelled,
)

__all__ = ["MemoryTable"]

_Key = tuple[str, str]
_Check = Callable[[Item, dict[str, str], dict[str, Any]], bool]

_TOKEN = re.compile(r"\s*(<>|<=|>=|[=<>(),]|[#:\w.]+)")


class MemoryTable:
    """The table.

    Attributes:
        items: By partition and sort key.
        version: Changes with each write.
    """

    def __init__(self) -> None:
        self.items: dict[_Key, Item] = {}
        self.version = 0

    def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Do one operation.

        Raises:
            ConditionFailed: The condition does not hold.
            TransactionCancelled: One of the conditions does not.
        """
        done: dict[str, Any] = getattr(self, f"_{operation}")(request)
        return done

    def _get_item(self, request: dict[str, Any]) -> dict[str, Any]:
        item = self.items.get(_key(request["Key"]))
        return {} if item is None else {"Item": dict(item)}

    def _batch_get_item(self, request: dict[str, Any]) -> dict[str, Any]:
        [(table, wanted)] = request["RequestItems"].items()
        found = [self.items.get(_key(each)) for each in wanted["Keys"]]
        return {"Responses": {table: [dict(item) for item in found if item]}}

    def _query(self, request: dict[str, Any]) -> dict[str, Any]:
        values = request["ExpressionAttributeValues"]
        partition = values[":pk"]["S"]
        found = sorted(k for k in self.items if k[0] == partition)
        condition = request["KeyConditionExpression"]
        if "BETWEEN" in condition:
            low, high = re.findall(r"BETWEEN (:\w+) AND (:\w+)", condition)[0]
            found = [k for k in found if values[low]["S"] <= k[1] <= values[high]["S"]]
        elif "begins_with" in condition:
            found = [k for k in found if k[1].startswith(values[":prefix"]["S"])]
        if not request.get("ScanIndexForward", True):
            found.reverse()
        return {"Items": [dict(self.items[k]) for k in found]}

    def _put_item(self, request: dict[str, Any]) -> dict[str, Any]:
        self._check(request, request["Item"])
        self._store(request["Item"])
        return {}

    def _delete_item(self, request: dict[str, Any]) -> dict[str, Any]:
        self._check(request, request["Key"])
        self._delete(request["Key"])
        return {}

    def _update_item(self, request: dict[str, Any]) -> dict[str, Any]:
        self._check(request, request["Key"])
        old = self.items.get(_key(request["Key"]))
        new = self._update(request)
        wanted = request.get("ReturnValues")
        if wanted == "ALL_NEW":
            return {"Attributes": new}
        return {"Attributes": dict(old)} if wanted == "ALL_OLD" and old else {}

    def _batch_write_item(self, request: dict[str, Any]) -> dict[str, Any]:
        for [entries] in [list(request["RequestItems"].values())]:
            for entry in entries:
                self._delete(entry["DeleteRequest"]["Key"])
        return {}

    def _transact_write_items(self, request: dict[str, Any]) -> dict[str, Any]:
        reasons = []
        actions = [next(iter(a.items())) for a in request["TransactItems"]]
        for name, action in actions:
            where = action["Item"] if name == "Put" else action["Key"]
            held = self._holds(action, self.items.get(_key(where)) or {})
            item = self.items.get(_key(where))
            failed = not held
            reasons.append(Reason("ConditionalCheckFailed" if failed else "None", item))
        if any(reason.code != "None" for reason in reasons):
            raise TransactionCancelled(tuple(reasons))
        for name, action in actions:
            if name == "Put":
                self._store(action["Item"])
            elif name == "Update":
                self._update(action)
            elif name == "Delete":
                self._delete(action["Key"])
        return {}

    def _check(self, request: dict[str, Any], where: Item) -> None:
        item = self.items.get(_key(where))
        if not self._holds(request, item or {}):
            raise ConditionFailed(None if item is None else dict(item), repeated=False)

    @staticmethod
    def _holds(request: dict[str, Any], item: Item) -> bool:
        condition = request.get("ConditionExpression")
        return condition is None or _compiled(condition)(
            item,
            request.get("ExpressionAttributeNames", {}),
            request.get("ExpressionAttributeValues", {}),
        )

    def _store(self, item: Item) -> None:
        self.items[_key(item)] = dict(item)
        self.version += 1

    def _delete(self, where: Item) -> None:
        self.items.pop(_key(where), None)
        self.version += 1

    def _update(self, request: dict[str, Any]) -> Item:
        item = dict(self.items.get(_key(request["Key"])) or request["Key"])
        names = request.get("ExpressionAttributeNames", {})
        values = request.get("ExpressionAttributeValues", {})
        parts = re.split(r"\b(SET|REMOVE|ADD) ", request["UpdateExpression"])[1:]
        for clause, text in zip(parts[::2], parts[1::2], strict=True):
            for each in text.split(","):
                if clause == "SET":
                    name, _, value = each.partition("=")
                    item[_named(name, names)] = values[value.strip()]
                elif clause == "REMOVE" and "." in each:
                    where, _, entry = each.strip().partition(".")
                    entries = dict(item[where]["M"])
                    entries.pop(names[entry], None)
                    item[where] = {"M": entries}
                elif clause == "REMOVE":
                    item.pop(_named(each, names), None)
                else:
                    name, value = each.split()
                    old = item.get(_named(name, names), {"N": "0"})
                    total = int(old["N"]) + int(values[value]["N"])
                    item[_named(name, names)] = {"N": str(total)}
        self._store(item)
        return dict(item)


def _key(item: Item) -> _Key:
    return item["pk"]["S"], item["sk"]["S"]


def _named(name: str, names: dict[str, str]) -> str:
    name = name.strip()
    return names[name] if name.startswith("#") else name


# Conditions: OR of ANDs of comparisons, functions and parentheses.


@lru_cache(None)
def _compiled(text: str) -> _Check:
    tokens = _TOKEN.findall(text)
    assert "".join(tokens) == re.sub(r"\s", "", text), text
    check = _either(tokens)
    assert not tokens, (text, tokens)
    return check


def _either(tokens: list[str]) -> _Check:
    checks = [_both(tokens)]
    while tokens and tokens[0] == "OR":
        tokens.pop(0)
        checks.append(_both(tokens))
    return lambda i, n, v: any(check(i, n, v) for check in checks)


def _both(tokens: list[str]) -> _Check:
    checks = [_one(tokens)]
    while tokens and tokens[0] == "AND":
        tokens.pop(0)
        checks.append(_one(tokens))
    return lambda i, n, v: all(check(i, n, v) for check in checks)


def _one(tokens: list[str]) -> _Check:
    first = tokens.pop(0)
    if first == "(":
        inner = _either(tokens)
        assert tokens.pop(0) == ")"
        return inner
    if first == "size":
        assert tokens.pop(0) == "("
        measured = tokens.pop(0)
        assert tokens.pop(0) == ")"
        sized, wanted = _COMPARE[tokens.pop(0)], tokens.pop(0)
        return lambda i, n, v: sized(
            {"N": len(i[_named(measured, n)]["M"])}, {"N": int(v[wanted]["N"])}
        )
    if first in ("attribute_exists", "attribute_not_exists"):
        assert tokens.pop(0) == "("
        name = tokens.pop(0)
        assert tokens.pop(0) == ")"
        there = first == "attribute_exists"
        if "." in name:  # an entry of a map
            where, _, entry = name.partition(".")
            return lambda i, n, v: (n[entry] in i.get(where, {"M": ()})["M"]) is there
        return lambda i, n, v: (_named(name, n) in i) is there
    operator = tokens.pop(0)
    if operator == "IN":
        assert tokens.pop(0) == "("
        among = []
        while (token := tokens.pop(0)) != ")":
            if token != ",":
                among.append(token)
        return lambda i, n, v: any(_get(first, i, n, v) == v[a] for a in among)
    second = tokens.pop(0)
    compare = _COMPARE[operator]

    def check(item: Item, names: dict[str, str], values: dict[str, Any]) -> bool:
        left = _get(first, item, names, values)
        right = _get(second, item, names, values)
        return left is not None and right is not None and compare(left, right)

    return check


def _get(token: str, item: Item, names: dict[str, str], values: dict[str, Any]) -> Any:
    if token[0] == ":":
        return values[token]
    for part in token.split("."):
        item = item.get("M", item).get(_named(part, names), {})
    return item or None


def _number(value: dict[str, Any]) -> int:
    return int(value["N"])


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: bool(a == b),
    "<>": lambda a, b: bool(a != b),
    "<": lambda a, b: _number(a) < _number(b),
    "<=": lambda a, b: _number(a) <= _number(b),
    ">": lambda a, b: _number(a) > _number(b),
    ">=": lambda a, b: _number(a) >= _number(b),
}
