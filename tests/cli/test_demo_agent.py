"""`steadwire demo-agent` as a user starts it."""

from __future__ import annotations

import signal
import subprocess
import sys

import httpx

from tests.harness.process import ROOT, environment, launched

QUESTION = {
    "threadId": "t",
    "runId": "r",
    "messages": [{"id": "q", "role": "user", "content": "count to 2"}],
}


def start(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        launched(sys.executable, "-m", "service", "demo-agent", *options),
        cwd=ROOT,
        env=environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_prints_its_address_serves_and_ends_at_ctrl_c() -> None:
    process = start("--port", "0", "--pause", "0")
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    answer = httpx.post(url, json=QUESTION, trust_env=False, timeout=30)
    assert answer.text.count("data: ") == answer.text.count("\n\n")
    assert answer.text.rstrip().endswith(
        '{"type":"RUN_FINISHED","threadId":"t","runId":"r"}'
    )
    # A second one cannot have its port.
    port = url.rstrip("/").rpartition(":")[2]
    other = start("--port", port)
    assert other.communicate(timeout=30) == (
        "",
        f"steadwire: cannot listen on port {port} of 127.0.0.1: "
        "Address already in use\n",
    )
    assert other.returncode == 2
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0
