"""Benchmark of idle connections, which only answer pings: CPU and memory.

    python benchmarks/bench_idle.py [--json FILE] [--check] [--seconds N] [--most N]

100, 1,000 and 10,000 clients, connected and subscribed to a channel each, at the
production interval of 25 s between pings: the server process's own CPU clock per second
over whole intervals, what of it each connection costs beyond the empty server, and
private memory of each. The same with the sweep every 30 s and, for the comparison, with
the first sweep an hour away.

``--check`` exits with 1 when one connection of the most costs over 20 % more than one
of 1,000. Less is well: pings that are due together share a turn of the event loop.
"""

import argparse
import asyncio
import os
import resource
import sys
import tempfile
from contextlib import contextmanager

from load import (
    connect,
    cpu,
    describe,
    exchange,
    loop_factory,
    memory,
    process,
    write,
)

COUNTS = (100, 1000, 10_000)
INTERVAL = 25.0  # s between pings, as in production
BATCH = 200  # clients that connect at once
FLAT = 0.2


@contextmanager
def server(directory, sweep):
    environment = {
        "STEADWIRE_STORE_PATH": os.path.join(directory, "bench.db"),
        "STEADWIRE_CLIENT_PING_INTERVAL": str(INTERVAL),
        "STEADWIRE_CLIENT_HEARTBEAT_TIMEOUT": "75",
        "STEADWIRE_CONNECTIONS_LIMIT": "20000",
        "STEADWIRE_CONNECTIONS_ADDRESS_LIMIT": "20000",
        "STEADWIRE_CONNECTIONS_SWEEP_INTERVAL": "30" if sweep else "3600",
    }
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with process(command, environment) as found:
        yield found


async def join(port, count):
    """Return clients that are subscribed, and answer pings from now on."""
    clients = []
    while len(clients) < count:
        batch = await connect(
            port, "/connection/websocket", min(BATCH, count - len(clients))
        )
        for client in batch:
            number = len(clients)
            await exchange(client, '{"connect":{},"id":1}')
            await exchange(client, f'{{"subscribe":{{"channel":"c{number}"}},"id":2}}')
            clients.append(client)
    return clients


async def used(pid, seconds):
    """Return the CPU seconds per second of a process over *seconds*."""
    before, loop = cpu(pid), asyncio.get_running_loop()
    start = loop.time()
    await asyncio.sleep(seconds)
    return (cpu(pid) - before) / (loop.time() - start)


async def measure(directory, count, seconds, *, sweep):
    with server(directory, sweep) as (pid, port):
        warm = await join(port, 100)
        for client in warm:
            client.transport.close()
        await asyncio.sleep(2.0)
        bare = await used(pid, 5.0)
        before = memory(pid)
        clients = await join(port, count)
        await asyncio.sleep(INTERVAL)  # first pings come at random; let that pass
        occupied = memory(pid)
        ponged = sum(client.pongs for client in clients)
        load = await used(pid, seconds)
        answered = sum(client.pongs for client in clients) - ponged
        expected = count * seconds / INTERVAL
        if abs(answered - expected) > 0.05 * expected:
            raise SystemExit(f"{answered} pongs, and {expected:.0f} were expected")
        for client in clients:
            client.transport.abort()
    return {
        "cpu_percent": load * 100,
        "bare_percent": bare * 100,
        "cpu_us_per_connection": (load - bare) / count * 1e6,
        "cpu_us_per_ping": (load - bare) / count * 1e6 * INTERVAL,
        "bytes_per_connection": (occupied - before) / count,
    }


def show(name, row):
    size = row["bytes_per_connection"] / 1024
    print(
        f"    {name:<10} {row['cpu_percent']:6.2f} % of a core (empty "
        f"{row['bare_percent']:.2f} %), {row['cpu_us_per_connection']:.2f} us a second "
        f"and {size:.1f} KiB a connection",
        flush=True,
    )


async def main(arguments):
    most = arguments.most
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, most + 1000), hard))
    report = describe()
    report["idle"] = {}
    with tempfile.TemporaryDirectory() as directory:
        for count in [count for count in COUNTS if count <= most]:
            print(f"{count:,} idle connections")
            rows = report["idle"][str(count)] = {}
            for name, sweep in (("swept", True), ("not swept", False)):
                rows[name] = await measure(
                    directory, count, arguments.seconds, sweep=sweep
                )
                show(name, rows[name])
    rows = report["idle"]
    largest = max(rows, key=int)
    base = rows.get("1000", rows[largest])["swept"]["cpu_us_per_connection"]
    report["flat"] = rows[largest]["swept"]["cpu_us_per_connection"] / base
    print(f"one of {int(largest):,} costs {report['flat']:.2f} of one of 1,000")
    write(arguments.json, report)
    missed = report["flat"] > 1.0 + FLAT
    return 1 if missed and arguments.check else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--seconds", type=float, default=2 * INTERVAL)
    parser.add_argument("--most", type=int, default=COUNTS[-1])
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        sys.exit(runner.run(main(parser.parse_args())))
