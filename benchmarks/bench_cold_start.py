"""Cold start of the Lambda function: imported, opened and ready for the first event.

    python benchmarks/bench_cold_start.py [--starts N]

Each start is a process of its own, with a table of the emulator ministack. Two times of
each: on the clock, and on the processor; on an idle machine they differ by the table's
answers alone. In turns with it starts bare boto3 with a client for DynamoDB: on a
machine that is not idle the ratio of both tells more than either. rich and greenlet are
hidden, as a package of what requirements.lock names has neither.
The start of Python itself is not counted: Lambda has done that before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.harness import emulators
from tests.harness.backends import GATEWAYS, INTEGRATION
from tests.harness.process import ROOT, environment

START = """
import json, sys, time
sys.modules["rich"] = sys.modules["greenlet"] = None
clock, processor = time.perf_counter(), time.process_time()
import service.lambda_entry
imported = time.perf_counter() - clock, time.process_time() - processor
service.lambda_entry.handler({"other": "event"}, None)
ready = time.perf_counter() - clock, time.process_time() - processor
print(json.dumps([*imported, *ready, len(sys.modules)]))
"""
BARE = """
import json, time
clock, processor = time.perf_counter(), time.process_time()
import boto3
made = time.perf_counter() - clock, time.process_time() - processor
boto3.client("dynamodb", region_name="us-east-1")
ready = time.perf_counter() - clock, time.process_time() - processor
print(json.dumps([*made, *ready]))
"""
"""What any function that speaks to DynamoDB does, in turns with ours."""

TARGET = 0.35  # s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=20)
    chosen = parser.parse_args()
    variables = GATEWAYS["lambda"]()
    del variables[INTEGRATION]
    variables |= {
        "STEADWIRE_GATEWAY_ENDPOINT": "http://127.0.0.1:1/test",
        "STEADWIRE_LOG_LEVEL": "error",
    }
    found, bare = [], []
    try:
        for _ in range(chosen.starts):
            found.append(_started(START, variables))
            bare.append(_started(BARE, variables))
    finally:
        emulators.close_all()
    print(f"{chosen.starts} starts, Python {sys.version.split()[0]}")
    print(f"{found[0][4]} modules")
    for name, columns in (("imported", (0, 1)), ("ready", (2, 3))):
        for kind, column in zip(("clock", "processor"), columns, strict=True):
            times = [each[column] for each in found]
            middle = statistics.median(times)
            print(f"{name:9} {kind:9} best {min(times):.3f} s, median {middle:.3f} s")
    ratios = [one[3] / other[3] for one, other in zip(found, bare, strict=True)]
    print(
        f"boto3 with a client, processor: best {min(each[3] for each in bare):.3f} s; "
        f"ours takes {statistics.median(ratios):.2f} of that (median)"
    )
    best = min(each[2] for each in found)
    print(
        f"target {TARGET} s: {'met' if best <= TARGET else 'not met'}, best {best:.3f}"
    )
    return 0


def _started(code: str, variables: dict[str, str]) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(variables),
        capture_output=True,
        text=True,
        check=True,
    )
    times: list[float] = json.loads(done.stdout)
    return times


if __name__ == "__main__":
    sys.exit(main())
