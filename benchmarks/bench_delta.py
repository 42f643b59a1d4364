"""Benchmark of deltas: bytes and server CPU for a text that grows by a word.

    python benchmarks/bench_delta.py [--json FILE] [--words N]

(a) A message of 1 to N words, published again with each word, to 1 and to 20
    subscribers: bytes on the wire to one of them, and server CPU a publication. In
    full, with deltas, in full again, and with deltas in protobuf. The next word is
    published when all have the last one.
(b) The same messages that a client has missed, recovered by it alone: bytes and CPU.
(c) The functions alone, in one process: a delta at three lengths of the text.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import timeit
from contextlib import contextmanager

from load import connect, cpu, describe, exchange, frame, loop_factory, process, write

from _speedups import fossil_delta
from service.core.model import Publication, RawJson
from service.protocol import client_pb2, replies

PATH = "/connection/websocket"
TEXT = "Every subscriber reads the words in the order they were written in, once. "
WORDS = TEXT.split()
KINDS = ("full", "delta", "full again", "delta, protobuf")
SUBSCRIBERS = (1, 20)
KEPT = {"history_size": 5000, "history_ttl": 600, "force_recovery": True}
NAMESPACE = {
    "name": "text",
    "allowed_delta_types": ["fossil"],
    "delta_publish": True,
    "allow_publish_for_client": True,
    "allow_publish_for_anonymous": True,
    "allow_subscribe_for_anonymous": True,
    **KEPT,
}


def message(words):
    text = " ".join(WORDS[n % len(WORDS)] for n in range(words))
    return json.dumps({"id": "answer-1", "text": text})


@contextmanager
def server(directory):
    environment = {
        "STEADWIRE_STORE_PATH": os.path.join(directory, "bench.db"),
        "STEADWIRE_CLIENT_PING_INTERVAL": "300",
        "STEADWIRE_CLIENT_HEARTBEAT_TIMEOUT": "900",
        "STEADWIRE_CLIENT_RECOVERY_LIMIT": "5000",
        "STEADWIRE_CHANNELS_NAMESPACES": json.dumps([NAMESPACE]),
    }
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with process(command, environment) as (pid, port):
        yield pid, port


def delimited(**fields):
    body = client_pb2.Command(**fields).SerializeToString()
    return bytes([len(body)]) + body


def on_wire(content):
    """Return the bytes of a frame of the server's with this content."""
    size = len(content)
    return size + (2 if size < 126 else 4 if size < 65536 else 10)


async def subscribers(port, count, channel, kind, **fields):
    """Return clients that are connected, and what each sends to subscribe."""
    binary = kind.endswith("protobuf")
    path = f"{PATH}?format=protobuf" if binary else PATH
    clients = await connect(port, path, count)
    fields = {"channel": channel, **fields}
    if kind.startswith("delta"):
        fields["delta"] = "fossil"
    for client in clients:
        first = {"id": 1, "connect": {}}
        await exchange(client, delimited(**first) if binary else json.dumps(first))
    second = {"id": 2, "subscribe": fields}
    return clients, delimited(**second) if binary else json.dumps(second)


async def live(pid, port, count, kind, words):
    """Return bytes to one subscriber and CPU seconds, both for all publications."""
    channel = f"text:{kind.replace(' ', '-').replace(',', '')}-{count}"
    clients, subscribe = await subscribers(port, count, channel, kind)
    for client in clients:
        await exchange(client, subscribe)
    [publisher] = await connect(port, PATH, 1)
    await exchange(publisher, '{"connect":{},"id":1}')
    got = size = 0

    def received(content):
        nonlocal got, size
        got += 1
        size += on_wire(content)

    for client in clients:
        client.received = received
    before = cpu(pid)
    for number in range(1, words + 1):
        publish = {"channel": channel, "data": json.loads(message(number))}
        publisher.send(frame(json.dumps({"id": number + 1, "publish": publish})))
        while got < number * count:
            await asyncio.sleep(0)
    used = cpu(pid) - before
    for client in (*clients, publisher):
        client.transport.abort()
    return size / count, used


async def recovery(pid, port, kind, words):
    """Return bytes and CPU seconds for one client that recovers all of `live`."""
    channel = "text:full-1"
    [client], subscribe = await subscribers(port, 1, channel, kind, recover=True)
    size, last = 0, asyncio.get_running_loop().create_future()
    end = f'"offset":{words}'.encode()
    if kind.endswith("protobuf"):
        offset = client_pb2.Publication(offset=words).SerializeToString()
        end = offset

    def received(content):
        nonlocal size
        size += on_wire(content)
        # The reply names the offset of the end too, where nothing is recovered.
        if end in content[-400:] and not last.done():
            last.set_result(None)

    client.received = received
    before = cpu(pid)
    client.send(frame(subscribe))
    await asyncio.wait_for(last, 60)
    used = cpu(pid) - before
    client.transport.abort()
    return size, used


async def whole_server(words):
    rows = {}
    with tempfile.TemporaryDirectory() as directory, server(directory) as (pid, port):
        await live(pid, port, 1, "warm up", 50)
        for count in SUBSCRIBERS:
            for kind in KINDS:
                size, used = await live(pid, port, count, kind, words)
                rows[f"{count}, {kind}"] = {
                    "bytes": size / words,
                    "cpu_us": used / words * 1e6,
                }
        for kind in KINDS:
            size, used = await recovery(pid, port, kind, words)
            rows[f"recovery, {kind}"] = {
                "bytes": size / words,
                "cpu_us": used / words * 1e6,
            }
    return rows


def best(call, number):
    return min(timeit.repeat(call, number=number, repeat=5)) / number * 1e6


def functions():
    rows = {}
    for words in (20, 200, 2000):
        old, new = RawJson(message(words)), RawJson(message(words + 1))
        before, after = old.encode(), new.encode()

        def written(new=new, old=old):
            return replies.delta_push('"text:1"', Publication(2, new), old)

        def in_full(new=new):
            return replies.publication_push('"text:1"', Publication(2, new))

        rows[f"{words} words"] = {
            "text_bytes": len(after),
            "delta_bytes": len(fossil_delta(before, after)),
            "delta_us": best(lambda a=before, b=after: fossil_delta(a, b), 2000),
            "push_us": best(written, 2000),
            "full_push_us": best(in_full, 2000),
        }
    return rows


async def main(arguments):
    report = describe()
    report["words"] = arguments.words
    report["functions"] = functions()
    for name, row in report["functions"].items():
        print(name, {key: round(value, 1) for key, value in row.items()})
    report["server"] = await whole_server(arguments.words)
    for name, row in report["server"].items():
        print(f"{name:<26} {row['bytes']:10.1f} bytes {row['cpu_us']:8.1f} us")
    write(arguments.json, report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--words", type=int, default=2000)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        sys.exit(runner.run(main(parser.parse_args())))
