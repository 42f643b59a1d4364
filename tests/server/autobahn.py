"""Autobahn's test suite, sent to an echo on our own frames; it needs a Python 2.7.

    python2.7 -m pip install 'autobahntestsuite==0.8.2'
    python -m tests.server.autobahn python2.7 [CASE ...]

A case is a number as ``9.*``; without any, all groups but 12 and 13 are run, in some
minutes (compression takes half an hour). Prints what each group gave; exits with 1 if a
case failed.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.server.running import Process

MiB = 1 << 20
GROUPS = [f"{group}.*" for group in (1, 2, 3, 4, 5, 6, 7, 9, 10)]
RUN = "from autobahntestsuite.wstest import run; run()"
GOOD = {"OK", "INFORMATIONAL"}  # the second leaves a choice to the server


def main(python: str, cases: list[str]) -> int:
    # The largest message has 16 MiB.
    server = Process({"message_size": 17 * MiB, "deflate": True}, "")
    try:
        asyncio.run(server.ready())
        with tempfile.TemporaryDirectory() as directory:
            spec = {
                "outdir": directory,
                "servers": [
                    {"agent": "us", "url": f"ws://127.0.0.1:{server.port}/handed"}
                ],
                "cases": cases or GROUPS,
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
            file = Path(directory, "spec.json")
            file.write_text(json.dumps(spec))
            command = [python, "-c", RUN, "-m", "fuzzingclient", "-s", str(file)]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            found = json.loads(Path(directory, "index.json").read_text())["us"]
    finally:
        server.kill()
    groups: dict[str, Counter[str]] = {}
    failed = []
    for case, outcome in found.items():
        behaviour = outcome["behavior"]
        groups.setdefault(case.split(".")[0], Counter())[behaviour] += 1
        if behaviour not in GOOD or outcome["behaviorClose"] not in GOOD:
            failed.append(case)
    for group in sorted(groups, key=int):
        print(group, dict(groups[group]))
    print("failed:", ", ".join(failed) or "none", "of", len(found))
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
