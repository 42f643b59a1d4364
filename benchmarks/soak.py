"""Soak: half an hour of mixed traffic, with every list of offsets checked.

    python benchmarks/soak.py [--minutes N] [--clients N] [--seed N] [--write]

One server in its default settings but for those in `SETTINGS`, so that everything that
happens once a day happens within minutes. Its clients, ten to a channel, subscribe with
recovery. Meanwhile, at fixed rates:

* the server API and clients publish;
* clients are cut without a word, and come back within a second;
* clients stop reading for three seconds;
* clients ask for presence and history, and for what does not exist.

Each client checks each offset: the next one, or those that a recovery gives, without a
gap and without a double. At the end each has everything up to the top that the server
names, and the server's gauges say what is open. Memory, tasks and descriptors are
sampled; after the first third (warm-up) they must be flat: the median of the last third
at most a twentieth, and 2 MiB, over that of the second. The exit status is 1 otherwise.
`--write` makes docs/soak.md and its plots.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
from load import Client, describe, frame, loop_factory, memory, process

DOCS = Path(__file__).parents[1] / "docs"
KEY = "the key of the soak test"
SETTINGS = {
    "STEADWIRE_API_KEY": KEY,
    "STEADWIRE_ENVIRONMENT": "development",
    "STEADWIRE_CONNECTIONS_LIMIT": "20000",
    "STEADWIRE_CONNECTIONS_ADDRESS_LIMIT": "20000",
    "STEADWIRE_CLIENT_MAX_AGE": "600",
    "STEADWIRE_STORE_CACHE_SIZE": "8388608",  # full before the warm-up is over
    "STEADWIRE_CLIENT_POSITION_CHECK": "40",
    "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(
        {
            "history_size": 1000,
            "history_ttl": 120,
            "force_recovery": True,
            "presence": True,
            "join_leave": True,
        }
    ),
}
MEMBERS = 10  # clients of a channel
API, PUBLISHED, CUT, PAUSED, ASKED = 40.0, 10.0, 2.0, 0.2, 5.0  # a second
PATIENCE = 60.0  # seconds for the last publications to arrive


class Wrong(Exception):
    """What must not happen."""


class Member:
    """A client that reconnects, recovers and checks."""

    def __init__(self, soak, number):
        self.soak = soak
        self.channel = f"soak-{number // MEMBERS}"
        self.offset = 0
        self.epoch = ""
        self.client = None
        self.received = self.recoveries = 0
        self._ids = 10
        self._replies = {}

    async def run(self):
        """Connect, and again after each end, until the soak is over."""
        while not self.soak.over:
            ended = asyncio.get_running_loop().create_future()
            try:
                await self._connect(ended)
                await ended
            except (OSError, TimeoutError):
                self.soak.failed_connects += 1
            self.client = None
            if not self.soak.over:
                await asyncio.sleep(self.soak.random.uniform(0.05, 1.0))

    async def _connect(self, ended):
        loop = asyncio.get_running_loop()

        class Link(Client):
            def connection_lost(self, error):
                super().connection_lost(error)
                if not ended.done():
                    ended.set_result(None)

        _, link = await loop.create_connection(
            lambda: Link("/connection/websocket"), "127.0.0.1", self.soak.port
        )
        try:
            await self._enter(link)
        except BaseException:
            link.received = lambda content: None  # the next one takes over
            link.transport.abort()
            raise

    async def _enter(self, link):
        await link.open
        link.received = self._frame
        self._replies.clear()
        self.client = link
        connected = await self.ask({"connect": {}})
        if "error" in connected:
            raise OSError(connected["error"])
        request = {"channel": self.channel}
        if self.epoch:
            request |= {"recover": True, "offset": self.offset, "epoch": self.epoch}
        reply = await self.ask({"subscribe": request})
        if "error" in reply:
            if not reply["error"].get("temporary"):
                raise Wrong(f"subscribe: {reply['error']}")
            link.transport.abort()
            return

    async def ask(self, command):
        """Send a command and return its reply."""
        if self.client is None:
            raise OSError("not connected")
        self._ids += 1
        self._replies[self._ids] = asyncio.get_running_loop().create_future()
        self.client.send(frame(json.dumps({"id": self._ids, **command})))
        try:
            return await asyncio.wait_for(self._replies[self._ids], 10)
        finally:
            self._replies.pop(self._ids, None)

    def _frame(self, content):
        try:
            for line in content.split(b"\n"):
                self._message(json.loads(line))
        except Wrong as error:
            self.soak.wrong.append(str(error))

    def _message(self, message):
        if "subscribe" in message:  # before anything that follows it in the frame
            self._subscribed(message["subscribe"])
        if "id" in message:
            waiting = self._replies.get(message["id"])
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
            return
        push = message.get("push", {})
        if "pub" in push and push["channel"] == self.channel:
            self._publication(push["pub"])
        elif "unsubscribe" in push:
            self.client.transport.abort()
        elif push.get("channel", self.channel) != self.channel:
            raise Wrong(f"{self.channel} was sent a push of {push['channel']}")

    def _subscribed(self, result):
        if self.epoch and result.get("was_recovering"):
            self.recoveries += 1
            if not result.get("recovered"):
                raise Wrong(f"{self.channel} not recovered after {self.offset}")
        elif not self.epoch:
            self.offset = result.get("offset", 0)
        self.epoch = result["epoch"]
        for each in result.get("publications", ()):
            self._publication(each)

    def _publication(self, publication):
        if publication["offset"] != self.offset + 1:
            raise Wrong(f"{self.channel}: {publication['offset']} after {self.offset}")
        self.offset += 1
        self.received += 1


class Soak:
    """The whole run."""

    def __init__(self, arguments):
        self.random = random.Random(arguments.seed)
        self.count = arguments.clients
        self.seconds = arguments.minutes * 60
        self.quiet = self.over = False
        self.wrong = []
        self.failed_connects = 0
        self.published = 0
        self.samples = []

    async def api(self, method, **body):
        """Call the server API; a publication is repeated with its key."""
        for _ in range(5):
            answer = await self.http.post(f"/api/{method}", json=body)
            answer.raise_for_status()
            answer = answer.json()
            if "error" not in answer:
                return answer["result"]
            await asyncio.sleep(0.5)
        raise Wrong(f"{method}: {answer['error']}")

    async def every(self, rate, work):
        """Call *work* at *rate* a second, on average, without waiting for it."""
        tasks = set()
        while not self.quiet:
            await asyncio.sleep(min(self.random.expovariate(rate), 10.0))
            task = asyncio.create_task(self._guarded(work))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _guarded(self, work):
        try:
            await work()
        except (OSError, TimeoutError):
            pass  # that client is away
        except (Wrong, httpx.HTTPError) as error:
            self.wrong.append(repr(error))

    def anyone(self):
        return self.random.choice(self.members)

    async def publish(self):
        self.published += 1
        text = "x" * self.random.choice((20, 100, 100, 1000))
        await self.api(
            "publish",
            channel=self.anyone().channel,
            data={"n": self.published, "text": text},
            idempotency_key=f"key-{self.published}",
        )

    async def client_publish(self):
        member = self.anyone()
        data = {"text": "from a client"}
        reply = await member.ask({"publish": {"channel": member.channel, "data": data}})
        if "error" in reply and not reply["error"].get("temporary"):
            raise Wrong(f"publish: {reply['error']}")

    async def cut(self):
        if (client := self.anyone().client) is not None:
            client.transport.abort()

    async def pause(self):
        client = self.anyone().client
        if client is not None and client.open.done():
            client.transport.pause_reading()
            await asyncio.sleep(3.0)
            if not client.transport.is_closing():
                client.transport.resume_reading()

    async def question(self):
        member = self.anyone()
        channel = {"channel": member.channel}
        name, request = self.random.choice(
            [
                ("presence", channel),
                ("presence_stats", channel),
                ("history", channel | {"limit": 10}),
                ("subscribe", {"channel": "nobody:knows"}),
            ]
        )
        await member.ask({name: request})

    async def look(self, pid):
        """Sample what the server uses."""
        answer = await self.http.get("/metrics")
        gauges = dict(
            line.rsplit(" ", 1)
            for line in answer.text.splitlines()
            if line.startswith(("steadwire_tasks ", "steadwire_connections{"))
        )
        connections = sum(float(v) for k, v in gauges.items() if "{" in k)
        return {
            "second": time.monotonic() - self.started,
            "memory": memory(pid),
            "tasks": float(gauges["steadwire_tasks"]),
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "connections": connections,
        }

    async def sample(self, pid):
        while not self.over:
            self.samples.append(await self.look(pid))
            await asyncio.sleep(max(1.0, self.seconds / 360))

    async def run(self, pid, port):
        self.port = port
        self.http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"X-API-Key": KEY},
            timeout=30.0,
            trust_env=False,
        )
        self.started = time.monotonic()
        before = await self.look(pid)
        self.members = [Member(self, number) for number in range(self.count)]
        running = []
        for member in self.members:
            running.append(asyncio.create_task(member.run()))
            await asyncio.sleep(0.002)
        works = (
            (API, self.publish),
            (PUBLISHED, self.client_publish),
            (CUT, self.cut),
            (PAUSED, self.pause),
            (ASKED, self.question),
        )
        traffic = [asyncio.create_task(self.every(*work)) for work in works]
        sampling = asyncio.create_task(self.sample(pid))
        until = self.started + self.seconds
        while time.monotonic() < until and not self.wrong:
            await asyncio.sleep(1.0)
        self.quiet = True
        await asyncio.gather(*traffic)
        await self.everybody_has_everything()
        self.over = True
        for member in self.members:
            if member.client is not None:
                member.client.transport.close()
        await asyncio.gather(*running, return_exceptions=True)
        sampling.cancel()
        await self.nothing_is_left(pid, before)
        await self.http.aclose()

    async def everybody_has_everything(self):
        tops = {}
        for channel in {member.channel for member in self.members}:
            found = await self.api("history", channel=channel, limit=0)
            tops[channel] = found["offset"]
        deadline = time.monotonic() + PATIENCE
        while behind := [m for m in self.members if m.offset != tops[m.channel]]:
            if time.monotonic() > deadline:
                self.wrong.append(f"{len(behind)} clients are behind")
                return
            await asyncio.sleep(0.1)

    async def nothing_is_left(self, pid, before):
        deadline = time.monotonic() + PATIENCE
        while True:
            now = await self.look(pid)
            left = {
                name: now[name] - before[name]
                for name in ("tasks", "descriptors", "connections")
                if now[name] > before[name]
            }
            if not left:
                return
            if time.monotonic() > deadline:
                self.wrong.append(f"left behind: {left}")
                return
            await asyncio.sleep(0.5)

    def flat(self):
        """Return what grew, by name: the medians of the second and the last third."""
        grown = {}
        third = self.seconds / 3
        for name, slack in (
            ("memory", 2 * 1024 * 1024),
            ("tasks", 20),
            ("descriptors", 20),
        ):
            middle, last = (
                statistics.median(
                    each[name]
                    for each in self.samples
                    if third * n <= each["second"] < third * (n + 1)
                )
                for n in (1, 2)
            )
            grown[name] = (middle, last, last <= middle * 1.05 + slack)
        return grown


def plot(samples, name, unit, divisor):
    """Return an SVG line of a sampled figure."""
    width, height, left = 640, 180, 60
    top = max(each[name] / divisor for each in samples) or 1
    end = max(each["second"] for each in samples)
    points = " ".join(
        f"{left + each['second'] / end * (width - left - 10):.1f},"
        f"{height - 30 - each[name] / divisor / top * (height - 50):.1f}"
        for each in samples
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<text x="{left}" y="14">{name}, {unit}</text>\n'
        f'<text x="4" y="30">{top:.0f}</text><text x="4" y="{height - 30}">0</text>\n'
        f'<line x1="{left}" y1="{height - 30}" x2="{width - 10}" y2="{height - 30}" '
        f'stroke="#888"/>\n'
        f'<polyline points="{points}" fill="none" stroke="#06c"/>\n'
        f'<text x="{width - 90}" y="{height - 12}">{end / 60:.0f} minutes</text>\n'
        "</svg>\n"
    )


def document(soak, grown, arguments):
    """Write docs/soak.md and its plots."""
    machine = describe()
    versions = ", ".join(f"{name} {n}" for name, n in machine["versions"].items())
    received = sum(member.received for member in soak.members)
    recoveries = sum(member.recoveries for member in soak.members)
    outcome = "nothing was lost, doubled or left behind"
    lines = [
        "# Soak",
        "",
        "Made by `make soak`; do not edit. `benchmarks/soak.py` says what happens and",
        "what is checked.",
        "",
        f"{arguments.minutes:g} minutes, {arguments.clients:,} clients, seed "
        f"{arguments.seed}: {received:,} publications delivered,",
        f"each offset checked, {recoveries:,} recoveries; "
        f"{'FAILED: ' + soak.wrong[0] if soak.wrong else outcome}.",
        f"{machine['machine']}; Python {machine['python']}; {versions}; "
        f"{machine['date']}.",
        "",
        "| median of | second third | last third |",
        "| --- | --- | --- |",
    ]
    plots = []
    for name, unit, divisor in FIGURES:
        middle, last = (f"{value / divisor:,.0f} {unit}" for value in grown[name][:2])
        lines.append(f"| {name} | {middle.strip()} | {last.strip()} |")
        svg = plot(soak.samples, name, unit, divisor)
        (DOCS / "benchmarks" / f"soak-{name}.svg").write_text(svg)
        plots += ["", f"![{name}](benchmarks/soak-{name}.svg)"]
    (DOCS / "soak.md").write_text("\n".join(lines + plots) + "\n")


FIGURES = (("memory", "MiB", 1024 * 1024), ("tasks", "", 1), ("descriptors", "", 1))


async def main(arguments):
    print(f"seed {arguments.seed}", flush=True)
    soak = Soak(arguments)
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            **SETTINGS,
            "STEADWIRE_STORE_PATH": os.path.join(directory, "soak.db"),
        }
        command = [sys.executable, "-m", "service", "serve", "--port", "0"]
        with process(command, environment) as (pid, port):
            await soak.run(pid, port)
    grown = soak.flat()
    for name, unit, divisor in FIGURES:
        middle, last, good = grown[name]
        print(f"{name}: {middle / divisor:,.1f} -> {last / divisor:,.1f} {unit}")
        if not good:
            soak.wrong.append(f"{name} grew from {middle:,.0f} to {last:,.0f}")
    received = sum(member.received for member in soak.members)
    recoveries = sum(member.recoveries for member in soak.members)
    print(f"{received:,} delivered, {recoveries:,} recoveries,", end=" ")
    print(f"{soak.failed_connects:,} connects failed")
    if arguments.write:
        document(soak, grown, arguments)
    for each in soak.wrong[:20]:
        print("WRONG:", each)
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        sys.exit(runner.run(main(parser.parse_args())))
