"""Benchmark of protobuf against JSON: server CPU a delivery, and the codecs alone.

    python benchmarks/bench_protobuf.py [--json FILE] [--seconds N]

(a) One publication to 1,000 subscribers: server CPU per delivery. The same server and
    load; JSON, protobuf, JSON again. The publisher is one of them.
(b) The codecs alone, in one process: a publish command read, a push written to the
    first and to each further subscriber, a reply that recovers 300 publications.
"""

import argparse
import asyncio
import sys
import tempfile
import timeit

from bench_server import FAN_RATE, PAYLOAD, SUBSCRIBERS, ours
from load import connect, cpu, describe, exchange, frame, loop_factory, write

from service.core.model import Publication, RawJson
from service.protocol import client_pb2, replies
from service.protocol.json import Json
from service.protocol.protobuf import Protobuf

PATH = "/connection/websocket"
INFO = RawJson('{"user":"ann","client":"0f8fad5b-d9cb-469f-a165-70867728950e"}')


def delimited(**fields):
    body = client_pb2.Command(**fields).SerializeToString()
    size = len(body)
    head = bytes([size]) if size < 128 else bytes([size % 128 + 128, size // 128])
    return head + body


def publish(binary):
    if binary:
        return delimited(id=3, publish={"channel": "fan", "data": PAYLOAD.encode()})
    return f'{{"publish":{{"channel":"fan","data":{PAYLOAD}}},"id":3}}'


async def deliveries(pid, port, binary, seconds):
    """Return CPU seconds per delivery to clients of one kind."""
    path = f"{PATH}?format=protobuf" if binary else PATH
    clients = await connect(port, path, SUBSCRIBERS)
    first = delimited(id=1, connect={}) if binary else '{"connect":{},"id":1}'
    second = (
        delimited(id=2, subscribe={"channel": "fan"})
        if binary
        else '{"subscribe":{"channel":"fan"},"id":2}'
    )
    for client in clients:
        await exchange(client, first)
        await exchange(client, second)
    got = 0
    # The publisher's push and reply share a frame; all others get the push alone.

    def received(data):
        nonlocal got
        got += 1

    for client in clients:
        client.received = received
    data, publications = frame(publish(binary)), int(seconds * FAN_RATE)
    for count in (5, publications):
        got, before = 0, cpu(pid)
        for number in range(count):
            clients[0].send(data)
            while got < (number + 1) * SUBSCRIBERS:
                await asyncio.sleep(0.001)
        used = cpu(pid) - before
    for client in clients:
        client.transport.abort()
    await asyncio.sleep(0.5)  # they leave before the next ones are counted
    return used / publications / SUBSCRIBERS


async def fan_out(seconds):
    figures = {}
    with tempfile.TemporaryDirectory() as directory, ours(directory) as (pid, port):
        for name in ("json", "protobuf", "json again"):
            used = await deliveries(pid, port, name == "protobuf", seconds)
            figures[name] = used * 1e6
    mean = (figures["json"] + figures["json again"]) / 2
    return {"cpu_us": figures, "ratio": figures["protobuf"] / mean}


def best(call, number):
    return min(timeit.repeat(call, number=number, repeat=5)) / number * 1e6


def codecs():
    text, binary = Json(), Protobuf()
    command = f'{{"publish":{{"channel":"fan","data":{PAYLOAD}}},"id":3}}'
    packed = publish(True)
    publications = [
        Publication(number, RawJson(PAYLOAD), INFO) for number in range(1, 301)
    ]
    push = replies.publication_push('"fan"', publications[0])
    bodies = ",".join(map(replies.publication_body, publications))
    reply = f'{{"id":3,"subscribe":{{"recovered":true,"publications":[{bodies}]}}}}'

    def afresh(message):
        def call():
            binary.encode(replies.PING)
            binary.encode(message)

        return call

    ping = best(afresh(replies.PING), 20_000)
    binary.encode(push)
    return {
        "read a publish": {
            "json": best(lambda: text.decode(command), 20_000),
            "protobuf": best(lambda: binary.decode(packed), 20_000),
        },
        "write a push, the first time": {
            "json": best(
                lambda: replies.publication_push('"fan"', publications[0]), 20_000
            ),
            "protobuf": best(afresh(push), 20_000) - ping,
        },
        "write it once more": {
            "json": best(lambda: text.encode(push), 20_000),
            "protobuf": (
                binary.encode(push),
                best(lambda: binary.encode(push), 20_000),
            )[1],
        },
        "write a reply of 300 publications": {
            "json": best(
                lambda: ",".join(map(replies.publication_body, publications)), 200
            ),
            "protobuf": best(afresh(reply), 200),
        },
    }


async def main(arguments):
    report = describe()
    report["codecs"] = codecs()
    for name, row in report["codecs"].items():
        print(
            f"{name:<34} json {row['json']:8.2f} us  protobuf {row['protobuf']:8.2f} us"
        )
    report["fan_out"] = await fan_out(arguments.seconds)
    for name, value in report["fan_out"]["cpu_us"].items():
        print(f"one to 1,000, {name:<12} {value:6.1f} us a delivery")
    print(f"ratio {report['fan_out']['ratio']:.2f}")
    write(arguments.json, report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--seconds", type=float, default=6.0)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        sys.exit(runner.run(main(parser.parse_args())))
