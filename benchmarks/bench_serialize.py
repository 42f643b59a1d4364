"""Benchmark of the payload serializer: Python objects to JSON, ours and rivals.

    python benchmarks/bench_serialize.py [--json FILE] [--check] [--rounds N]

Each contestant takes a Python object and returns JSON as `str`; rivals that return
bytes decode them, since a payload is kept as text. None of the rivals does what ours
does beside writing (keys that become equal, numbers that are not JSON, exact large
integers, lone surrogates, cycles, a bound on size); they are here for the scale. They
get a function for what they do not know, which makes text of a datetime and a dict of
a dataclass. Contestants take turns within a round, so that a busy machine slows all of
them; the minimum and the median over the rounds are shown, in nanoseconds a payload.
"""

import dataclasses
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import msgspec
import orjson
import ujson
from bench_codec import finish, measure, options, ratios, show, versions

from service.payload import dump

WORDS = "Every subscriber reads the words in the order in which they were written. "
NOON = datetime(2024, 2, 29, 12, 0, 0, 5, UTC)
TARGETS = [  # payload, rival, at least so many times as long as ours
    ("100 B text", "json", 0.7),  # the check of every value takes as long as ujson
    ("1024 B text", "json", 1.0),
    ("16384 B text", "json", 2.0),
    ("16384 B items", "json", 0.8),
]


@dataclasses.dataclass
class Item:
    id: int
    name: str
    score: float
    at: object
    done: bool = False


def default(value):
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}


def text(size: int) -> dict:
    """Return a token of a stream: a few members, of which one is long."""
    value = {"type": "token", "message": "0192f0c1-7d4e", "seq": 118, "text": ""}
    rest = size - len(orjson.dumps(value))
    return {**value, "text": (WORDS * (rest // len(WORDS) + 1))[:rest]}


def many(size: int, make) -> dict:
    """Return the state of an agent: as many items as fit."""
    value = {"type": "state", "at": make(0)["at"], "items": []}
    while len(orjson.dumps(value)) < size:
        number = len(value["items"])
        value["items"].append({**make(number), "name": f"number {number}"})
    return value


def plain(number: int) -> dict:
    at = "2024-02-29T12:00:00.000005Z"
    return {"id": number, "name": "", "score": number / 7, "at": at, "done": False}


def dates(number: int) -> dict:
    return {**plain(number), "at": NOON}


def payloads() -> dict[str, object]:
    made: dict[str, object] = {}
    for size in (100, 1024, 16384):
        made[f"{size} B text"] = text(size)
        made[f"{size} B items"] = many(size, plain)
        made[f"{size} B datetimes"] = many(size, dates)
        state = many(size, dates)
        state["items"] = [Item(**item) for item in state["items"]]
        made[f"{size} B dataclasses"] = state
    return made


def contestants():
    compact = json.JSONEncoder(
        ensure_ascii=False, separators=(",", ":"), default=default
    ).encode
    encode = msgspec.json.Encoder(enc_hook=default).encode
    passed = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
    return {
        "ours": dump,
        "json": compact,
        "ujson": lambda value: ujson.dumps(
            value, ensure_ascii=False, escape_forward_slashes=False, default=default
        ),
        "orjson": lambda value: orjson.dumps(value, default=default).decode(),
        "orjson, all default": lambda value: orjson.dumps(
            value, default=default, option=passed
        ).decode(),
        "msgspec": lambda value: encode(value).decode(),
    }


def same(text: str):
    """Return what *text* says, with one spelling of UTC for all."""
    return json.loads(text.replace("+00:00", "Z"))


def main() -> int:
    chosen = options(__doc__)
    print(versions())
    calls = contestants()
    report = {}
    for title, value in payloads().items():
        expected = same(calls["json"](value))
        assert all(same(call(value)) == expected for call in calls.values()), title
        results = measure(calls, value, chosen.rounds)
        ratios(results, "ours")
        show(title, results, "ours")
        report[title] = results
    print()
    targets = [
        {
            "payload": title,
            "than": f"{rival} on {title}",
            "wanted": wanted,
            "ratio": report[title][rival]["ratio_min"],
            "met": report[title][rival]["ratio_min"] >= wanted,
        }
        for title, rival, wanted in TARGETS
    ]
    return finish(chosen, "serialize", report, targets)


if __name__ == "__main__":
    sys.exit(main())
