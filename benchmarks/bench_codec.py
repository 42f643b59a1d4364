"""Benchmark of the JSON codec: a publish command to its push, ours and rivals.

    python benchmarks/bench_codec.py [--json FILE] [--check] [--rounds N]

Each contestant takes the text of a frame and returns the text of the push, as a
server does for each message. Rivals that return bytes decode them, since text is
what an ASGI server sends in a text frame. Ours keeps the quoted name of a channel
with the channel, as the service does; others dump it with the rest. Contestants take
turns within a round, so that a busy machine slows all of them; the minimum and the
median over the rounds are shown, in nanoseconds a message.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import msgspec
import orjson
import ujson

from _speedups import json_py

try:
    from _speedups import json_c
except ImportError:
    json_c = None

ROUNDS = 200
ROUND = 0.002  # s; how long one contestant's turn takes, about
CHANNEL = "chat:room-42"
MESSAGE = (
    '{"id":17,"publish":{"channel":"chat:room-42","data":{"type":"token",'
    '"message":"0192f0c1-7d4e","seq":118,"text":"TEXT","final":false,'
    '"usage":{"in":812,"out":118}}}}'
)
PROSE = "Every subscriber reads the words in the order in which they were written. "
TARGETS = {"json": 10.0, "ujson": 5.0, "orjson": 2.0, "msgspec": 1.0}


class Data(msgspec.Struct):
    channel: str
    data: msgspec.Raw


class Command(msgspec.Struct):
    publish: Data
    id: int = 0


class Publication(msgspec.Struct):
    data: msgspec.Raw
    offset: int


class Body(msgspec.Struct):
    channel: str
    pub: Publication


class Push(msgspec.Struct):
    push: Body


def command(size: int) -> str:
    """Return a publish command of *size* bytes; 100 is a shorter kind."""
    if size < len(MESSAGE):
        frame = '{"id":17,"publish":{"channel":"chat:room-42","data":{"text":"TEXT"}}}'
    else:
        frame = MESSAGE
    words = (PROSE * (size // len(PROSE) + 1))[: size - len(frame) + len("TEXT")]
    frame = frame.replace("TEXT", words)
    assert len(frame) == size
    return frame


def ours(side) -> Callable[[str], str]:
    scan, push = side.scan_commands, side.encode_publication_push
    quoted = {CHANNEL: side.quote(CHANNEL)}

    def run(frame: str) -> str:
        _, _, params = scan(frame)[0]
        return push(quoted[params["channel"]], params["data"], 7, None, None)

    return run


def dynamic(loads, dumps) -> Callable[[str], str]:
    def run(frame: str) -> str:
        params = loads(frame)["publish"]
        body = {"data": params["data"], "offset": 7}
        return dumps({"push": {"channel": params["channel"], "pub": body}})

    return run


def typed() -> Callable[[str], str]:
    decode, encode = msgspec.json.Decoder(Command).decode, msgspec.json.Encoder().encode

    def run(frame: str) -> str:
        data = decode(frame).publish
        body = Publication(data.data, 7)
        return encode(Push(Body(data.channel, body))).decode()

    return run


def contestants() -> dict[str, Callable[[str], str]]:
    sides = {"compiled": ours(json_c)} if json_c else {}
    return sides | {
        "pure": ours(json_py),
        "json": dynamic(json.loads, json.dumps),
        "ujson": dynamic(ujson.loads, ujson.dumps),
        "orjson": dynamic(orjson.loads, lambda value: orjson.dumps(value).decode()),
        "msgspec": typed(),
    }


def measure(calls: dict[str, Callable], argument, rounds: int) -> dict[str, dict]:
    """Return minimum and median of each call, in nanoseconds."""
    clock = time.perf_counter
    counts, times = {}, {name: [] for name in calls}
    for name, call in calls.items():
        start = clock()
        for _ in range(20):
            call(argument)
        counts[name] = max(1, int(20 * ROUND / (clock() - start)))
    for _ in range(rounds):
        for name, call in calls.items():
            repeats = range(counts[name])
            start = clock()
            for _ in repeats:
                call(argument)
            times[name].append((clock() - start) / counts[name] * 1e9)
    return {
        name: {"min_ns": min(each), "median_ns": statistics.median(each)}
        for name, each in times.items()
    }


def ratios(results: dict[str, dict], base: str) -> None:
    """Add how many times as long as *base* each took."""
    for result in results.values():
        for kind in ("min", "median"):
            least = results[base][f"{kind}_ns"]
            result[f"ratio_{kind}"] = result[f"{kind}_ns"] / least


def show(title: str, results: dict[str, dict], base: str) -> None:
    print(f"\n{title:22}{'min ns':>10}{'median ns':>11}   times {base} (min, median)")
    for name, each in results.items():
        print(
            f"  {name:20}{each['min_ns']:10.0f}{each['median_ns']:11.0f}"
            f"{each['ratio_min']:9.2f}{each['ratio_median']:9.2f}"
        )


def options(doc: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument(
        "--check", action="store_true", help="fail if a target is missed"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    return parser.parse_args()


def finish(chosen, name: str, payloads: dict, targets: list[dict]) -> int:
    """Print the targets, write the file, and return the exit status."""
    for target in targets:
        verdict = "met" if target["met"] else "MISSED"
        print(
            f"target: {target['ratio']:.2f} x {target['than']}, "
            f"wanted {target['wanted']:g}: {verdict}"
        )
    if chosen.json:
        rivals = ("ujson", "orjson", "msgspec", "Cython")
        report = {
            "name": name,
            "python": platform.python_version(),
            "machine": f"{platform.machine()} {platform.system()}",
            "versions": {each: metadata.version(each) for each in rivals},
            "rounds": chosen.rounds,
            "payloads": payloads,
            "targets": targets,
        }
        Path(chosen.json).write_text(json.dumps(report, indent=2) + "\n")
    return int(chosen.check and not all(target["met"] for target in targets))


def versions() -> str:
    named = [
        f"{name} {metadata.version(name)}" for name in ("ujson", "orjson", "msgspec")
    ]
    return f"Python {platform.python_version()}, {', '.join(named)}"


def main() -> int:
    chosen = options(__doc__)
    print(versions())
    calls = contestants()
    base = "compiled" if json_c else "pure"
    payloads = {}
    for size in (100, 236, 1024, 16384):
        frame = command(size)
        expected = json.loads(calls["json"](frame))
        assert all(json.loads(call(frame)) == expected for call in calls.values())
        results = measure(calls, frame, chosen.rounds)
        ratios(results, base)
        show(f"{size} B command", results, base)
        payloads[str(size)] = results
    print()
    targets = [
        {
            "than": name,
            "wanted": wanted,
            "ratio": payloads["236"][name]["ratio_min"],
            "met": payloads["236"][name]["ratio_min"] >= wanted,
        }
        for name, wanted in TARGETS.items()
    ]
    return finish(chosen, "codec", payloads, targets)


if __name__ == "__main__":
    sys.exit(main())
