"""Benchmark of the stages of one message, with and without the C extensions.

    python benchmarks/bench_budget.py [--json FILE] [--check] [--seconds N]

One message is: a publish command comes in, is appended, and its push and its reply go
out to the client that sent it. Each stage is timed alone, with the objects that the
service uses (the minimum of many turns, in microseconds); the whole is the CPU of the
real server's process per message, as in bench_server (a). What the stages leave of it
is what runs between them: the connection, the event loop, the wake-ups of the two
threads and the kernel.

Both sides are measured in one call: with the extensions, and with
``SERVICE_NO_SPEEDUPS=1``. ``--check`` exits with 1 if the extensions make it slower.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_server import CLIENTS, PAYLOAD, RATE, join, ours, paced
from load import describe, frame, loop_factory, write

from _speedups import FrameParser, SharedFrame
from service.auth.permissions import Permissions
from service.connections.flusher import Flusher
from service.connections.outbox import Outbox
from service.core.clock import SystemClock
from service.core.hooks import Handlers
from service.core.model import (
    Channel,
    ClientId,
    Draft,
    Publication,
    RawJson,
    SubscriberInfo,
    UserId,
)
from service.core.ports import Committed, History
from service.core.shedding import Shedding
from service.hub.hub import Hub
from service.hub.publish_metrics import PublishMetrics
from service.metrics import Metrics
from service.protocol import replies
from service.protocol.json import Json
from service.session.liveness_stats import LivenessStats
from service.session.session import Session
from service.settings import ClientSettings, Settings, StoreSettings
from service.stores.sqlite.store import SqliteStore

TURNS = 40
EACH = 2000  # calls a turn
FRAME = f'{{"publish":{{"channel":"own","data":{PAYLOAD}}},"id":3}}'


def minimum(call):
    """Return the least microseconds a call took, over `TURNS` turns."""
    best = float("inf")
    for _ in range(TURNS):
        start = time.perf_counter()
        for _ in range(EACH):
            call()
        best = min(best, time.perf_counter() - start)
    return best / EACH * 1e6


class Silent:
    """A session's port and a hub's member that do nothing."""

    has_room = True
    idle = True
    space = 1 << 20

    def __init__(self):
        self.behind = {}

    def __getattr__(self, name):
        return lambda *arguments, **options: None


def frames_stage():
    """Parse the client's frame, and build the one with push and reply."""
    parser, shared, data = FrameParser(1 << 20), SharedFrame(), frame(FRAME)
    answers = (f"{FRAME}\n{{}}", f"{FRAME}\n[]")  # it keeps the last one
    turn = 0

    def call():
        nonlocal turn
        turn ^= 1
        parser.feed(data)
        shared.of(answers[turn])

    return minimum(call)


def session_stage():
    settings = Settings()
    session = Session(
        Silent(),
        settings.client,
        Permissions(settings.channels, insecure=True),
        Handlers(),
        LivenessStats(60.0),
        client=ClientId("c"),
        version="0",
        insecure=True,
        rng=Random(1),
        now=0.0,
        wall=0.0,
    )
    session.receive(Json.decode('{"id":1,"connect":{}}'), 0.0)
    session.slot_acquired(None)
    from service.core.model import Appended, Position

    commands = Json.decode(FRAME)
    done = Appended(Position(1, "e"), True)

    def call():
        session.receive(commands, 0.0)
        session.published(3, done)

    return minimum(call)


def delivery_stage(store):
    clock = SystemClock()
    flusher = Flusher(lambda run: None, clock)
    meter = PublishMetrics(Metrics(), clock, flusher)
    shedding = Shedding(10.0, Random(1))
    hub = Hub(
        store,
        ClientSettings(),
        clock,
        lambda work: None,
        meter,
        shedding,
        lambda channel: 0.0,
    )
    history = History(0, 0.0)
    listener = SubscriberInfo(ClientId("c"), UserId(""), RawJson("{}"))
    hub.join(Channel("own"), Silent(), listener, history, None, lambda outcome: True)
    publication = Publication(0, RawJson(PAYLOAD))
    publication.body = "{}"  # encoding is a stage of its own
    batch = [Committed(Channel("own"), publication, "e")]
    return minimum(lambda: hub.committed(batch))


def encode_stage():
    data = RawJson(PAYLOAD)
    info = RawJson('{"user":"","client":"0b7dd3c9-3a1c-4d1b-8f3c-3a1c4d1b8f3c"}')
    return minimum(
        lambda: (
            replies.publication_push('"own"', Publication(7, data, info)),
            replies.empty_reply(3, "publish"),
        )
    )


def outbox_stage():
    async def send(text):
        pass

    outbox = Outbox(
        send,
        SystemClock(),
        ClientSettings(),
        Json(),
        flusher=Flusher(lambda run: None, SystemClock()),
        progress=lambda: (0, 0),
        drained=lambda: None,
        failed=lambda close: None,
    )
    push, reply = FRAME, '{"id":3,"publish":{}}'

    def call():
        outbox.put(push)
        outbox.put(reply)
        outbox.flush()

    return minimum(call)


async def append_stage(store):
    """Return microseconds a publication, on the loop and on the writer's thread."""
    history = History(1000, 3600.0)
    channel, count = Channel("own"), 20_000
    best = float("inf")
    for _ in range(3):
        left = asyncio.Event()
        waiting = count

        def done(outcome, left=left):
            nonlocal waiting
            waiting -= 1
            if not waiting:
                left.set()

        start = time.process_time()
        for _ in range(count):
            store.append(channel, Draft(RawJson(PAYLOAD)), history, done)
        await left.wait()
        best = min(best, time.process_time() - start)
    return best / count * 1e6


async def stages():
    with tempfile.TemporaryDirectory() as directory:
        settings = StoreSettings(path=os.path.join(directory, "budget.db"))
        store = SqliteStore(settings, SystemClock())
        await store.start(lambda batch: None)
        result = {
            "frames": frames_stage(),
            "decode": minimum(lambda: Json.decode(FRAME)),
            "session": session_stage(),
            "append": await append_stage(store),
            "hub": delivery_stage(store),
            "encode": encode_stage(),
            "outbox": outbox_stage(),
        }
        await store.close()
    return result


async def whole(seconds, environment):
    """Return the CPU microseconds of the real server per message."""
    with (
        tempfile.TemporaryDirectory() as directory,
        ours(directory, environment) as (pid, port),
    ):
        clients = await join(port, CLIENTS, lambda index: f"own-{index}")
        texts = [
            f'{{"publish":{{"channel":"own-{index}","data":{PAYLOAD}}},"id":3}}'
            for index in range(CLIENTS)
        ]

        def pushes(data):
            return data.count(b'{"push":')

        await paced(pid, clients, texts, pushes, 1, RATE)
        figures = await paced(pid, clients, texts, pushes, seconds, RATE)
    return figures["cpu_us"]


def side(seconds, *, pure):
    """Measure one side; its stages in a process of their own."""
    environment = {"SERVICE_NO_SPEEDUPS": "1"} if pure else {}
    answer = subprocess.run(
        [sys.executable, __file__, "--stages"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    result = json.loads(answer.stdout)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        result["whole"] = runner.run(whole(seconds, environment))
    result["server"] = result["whole"] - sum(
        value for name, value in result.items() if name != "whole"
    )
    return result


def main(arguments):
    report = describe()
    report["compiled"] = side(arguments.seconds, pure=False)
    report["pure"] = side(arguments.seconds, pure=True)
    report["compiled_again"] = side(arguments.seconds, pure=False)
    print(f"{'stage':<10} {'compiled':>9} {'pure':>9}   microseconds a message")
    for name in report["compiled"]:
        compiled = min(report["compiled"][name], report["compiled_again"][name])
        print(f"{name:<10} {compiled:9.2f} {report['pure'][name]:9.2f}")
    best = min(report["compiled"]["whole"], report["compiled_again"]["whole"])
    report["end_to_end"] = report["pure"]["whole"] / best
    print(f"the extensions make the whole {report['end_to_end']:.2f} times as fast")
    write(arguments.json, report)
    return 1 if arguments.check and report["end_to_end"] < 1 else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--stages", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stages:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            json.dump(runner.run(stages()), sys.stdout)
    else:
        sys.exit(main(arguments))
