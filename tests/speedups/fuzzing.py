"""A coverage-guided fuzzer of this folder, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))


def fuzz(script, largest, findings):
    """Run *script* on inputs of up to *largest* bytes; return its last line.

    What it finds is written to the folder *findings*.
    """
    ended = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name(script)),
            f"-max_total_time={SECONDS}",
            f"-max_len={largest}",
            f"-artifact_prefix={findings}/",
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=SECONDS + 120,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return ended.stderr.splitlines()[-1]
