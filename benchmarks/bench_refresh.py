"""Benchmark of token refreshes: a hundred connections at once.

    python benchmarks/bench_refresh.py [--json FILE] [--check] [--rounds N]

100 clients send `refresh` with a new token in one burst, and each waits for its reply;
the times are from the burst to each reply, over all rounds. The rival is the same burst
of the same frames to a bare echo on the same Hypercorn, which decides nothing. Measured
as rival, ours, rival in one call. With HS256 and with RS256, whose keys the server has.

The rows "a token" are the verification alone, in this process: what of the burst is
cryptography. ``--check`` exits with 1 when a target is missed.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from load import (
    connect,
    describe,
    exchange,
    frame,
    loop_factory,
    percentile,
    process,
    write,
)

from service.auth.verifier import Verifier
from service.settings import Secret, Settings, TokenSettings

HERE = Path(__file__).parent
TARGETS = {"p50_ms": 10.0, "p95_ms": 50.0, "p99_ms": 100.0}
CLIENTS = 100
SECRET = "a secret for this benchmark, of enough bytes"


def keys():
    private = rsa.generate_private_key(65537, 2048)
    public = private.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return {"HS256": SECRET, "RS256": private}, pem.decode()


def token(key, algorithm, user):
    claims = {"sub": user, "exp": int(time.time()) + 3600, "jti": os.urandom(8).hex()}
    return jwt.encode(claims, key, algorithm)


@contextmanager
def ours(directory, pem):
    environment = {
        "STEADWIRE_STORE_PATH": os.path.join(directory, "bench.db"),
        "STEADWIRE_TOKEN_HMAC_SECRET_KEY": SECRET,
        "STEADWIRE_TOKEN_RSA_PUBLIC_KEY": pem,
        "STEADWIRE_CLIENT_PING_INTERVAL": "300",
        "STEADWIRE_CLIENT_HEARTBEAT_TIMEOUT": "900",
        "STEADWIRE_CONNECTIONS_ADDRESS_LIMIT": "20000",
    }
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with process(command, environment) as server:
        yield server


@contextmanager
def rival():
    with process([sys.executable, str(HERE / "echo.py"), "stock"]) as server:
        yield server


async def burst(clients, frames):
    """Send each client's frame at once; return the seconds until each reply."""
    done = asyncio.get_running_loop().create_future()
    times = []

    def received(data):
        if b'"error"' in data:
            raise SystemExit(f"refused: {data.decode()}")
        times.append(time.perf_counter() - begin)
        if len(times) == len(clients):
            done.set_result(None)

    for client in clients:
        client.received = received
    begin = time.perf_counter()
    for client, data in zip(clients, frames, strict=True):
        client.send(data)
    await asyncio.wait_for(done, 30)
    return times


async def bursts(clients, rounds, text):
    """Burst *rounds* times, each with new frames; return what it took."""
    latencies = []
    for number in range(rounds + 1):
        frames = [frame(text(index)) for index in range(len(clients))]
        times = await burst(clients, frames)
        if number:  # the first one warms up
            latencies += times
    return {
        "p50_ms": percentile(latencies, 0.50) * 1e3,
        "p95_ms": percentile(latencies, 0.95) * 1e3,
        "p99_ms": percentile(latencies, 0.99) * 1e3,
    }


def command(private, algorithm):
    def text(index):
        made = token(private, algorithm, f"user{index}")
        return f'{{"refresh":{{"token":"{made}"}},"id":2}}'

    return text


async def measure(directory, rounds, private, pem, algorithm):
    text = command(private, algorithm)

    async def bare():
        with rival() as (_, port):
            return await bursts(await connect(port, "/echo", CLIENTS), rounds, text)

    async def service():
        with ours(directory, pem) as (_, port):
            clients = await connect(port, "/connection/websocket", CLIENTS)
            for index, client in enumerate(clients):
                made = token(private, algorithm, f"user{index}")
                hello = f'{{"connect":{{"token":"{made}"}},"id":1}}'
                reply = await exchange(client, hello)
                if b'"ttl"' not in reply:
                    raise SystemExit(f"not connected: {reply.decode()}")
            return await bursts(clients, rounds, text)

    return {
        "rival": await bare(),
        "ours": await service(),
        "rival_again": await bare(),
    }


def verification(private, pem, algorithm):
    """Return the least microseconds that one verification takes."""
    settings = Settings(
        token=TokenSettings(hmac_secret_key=Secret(SECRET), rsa_public_key=pem)
    )
    verifier = Verifier(settings, time.time)
    tokens = [token(private, algorithm, f"user{number}") for number in range(500)]
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        for each in tokens:
            verifier.connection(each)
        best = min(best, (time.perf_counter() - begin) / len(tokens))
    return best * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    chosen = parser.parse_args()
    private, pem = keys()
    report = {**describe(), "clients": CLIENTS, "rounds": chosen.rounds}
    met = True
    for algorithm, key in private.items():
        with (
            tempfile.TemporaryDirectory() as directory,
            asyncio.Runner(loop_factory=loop_factory()) as runner,
        ):
            row = runner.run(measure(directory, chosen.rounds, key, pem, algorithm))
        row["verify_us"] = verification(key, pem, algorithm)
        report[algorithm] = row
        for name in ("rival", "ours", "rival_again"):
            times = row[name]
            print(
                f"{algorithm} {name:12} p50 {times['p50_ms']:6.1f} ms, "
                f"p95 {times['p95_ms']:6.1f} ms, p99 {times['p99_ms']:6.1f} ms"
            )
        print(f"{algorithm} a token      {row['verify_us']:6.1f} µs")
        for name, most in TARGETS.items():
            if row["ours"][name] > most:
                met = False
                print(f"{algorithm} {name} is over {most:g}")
    write(chosen.json, report)
    return 1 if chosen.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
