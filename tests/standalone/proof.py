"""Proof: five scenarios with exact figures against the running service.

    python tests/standalone/proof.py [SCENARIO ...]

Each scenario starts a server of its own, as a user would, and speaks to it over real
sockets: the WebSocket, the HTTP API, `/stats` and `/metrics`. The code here needs the
standard library only. All five run at once, within 30 seconds. The exit status is 1
when a figure is another one. docs/proof.md says what each scenario shows.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import math
import os
import re
import signal
import socket
import sqlite3
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
API_KEY = "a key of the proof alone"
TOKEN_KEY = "a secret of the proof alone, of 32 bytes and more"
PATIENCE = 25.0  # seconds until a scenario has failed

Json = dict[str, Any]


def check(what: str, found: object, expected: object) -> None:
    """Fail the scenario unless *found* is exactly what was expected."""
    if found != expected:
        raise AssertionError(f"{what}: {found!r}, and not {expected!r}")


def strict(text: str) -> Any:
    """Parse JSON as RFC 8259 has it: without NaN, Infinity and doubled names."""

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    def members(pairs: list[tuple[str, Any]]) -> Json:
        if len(pairs) != len(dict(pairs)):
            raise ValueError("a name twice")
        return dict(pairs)

    return json.loads(text, parse_constant=constant, object_pairs_hook=members)


def token(user: str) -> str:
    """Return a connection token of *user* (JWT, HS256), valid for an hour."""

    def part(value: Json | bytes) -> str:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    claims = {"sub": user, "exp": int(time.time()) + 3600}
    signed = part({"typ": "JWT", "alg": "HS256"}) + "." + part(claims)
    digest = hmac.new(TOKEN_KEY.encode(), signed.encode(), hashlib.sha256).digest()
    return signed + "." + part(digest)


class Server:
    """A running server.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        database: Its SQLite file.
    """

    def __init__(self, port: int, database: Path) -> None:
        self.port = port
        self.database = database

    async def http(self, method: str, path: str, body: Json | None = None) -> str:
        """Send a request, and return the body of its answer of status 200."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = b"" if body is None else json.dumps(body).encode()
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"X-API-Key: {API_KEY}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        answer = await reader.read()
        writer.close()
        head, _, content = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise AssertionError(f"{path} answered {head.splitlines()[:1]}")
        return content.decode()

    async def api(self, method: str, **body: Any) -> Json:
        """Call the server API."""
        answer: Json = json.loads(await self.http("POST", f"/api/{method}", body))
        return answer

    async def connections(self) -> int:
        """Return how many clients are connected."""
        stats = json.loads(await self.http("GET", "/stats"))
        count: int = stats["connections"]["total"]
        return count

    async def metric(self, name: str) -> dict[str, int]:
        """Return a metric by its label, without what is 0."""
        found = re.findall(
            rf'^steadwire_{name}{{[a-z]+="([^"]+)"}} ([0-9.e+]+)$',
            await self.http("GET", "/metrics"),
            re.MULTILINE,
        )
        return {label: int(float(value)) for label, value in found if float(value)}

    async def until(
        self, what: str, look: Callable[[], Awaitable[object]], expected: object
    ) -> None:
        """Look until the server shows what is expected of it."""
        seen: object = None
        try:
            async with asyncio.timeout(PATIENCE):
                while (seen := await look()) != expected:
                    await asyncio.sleep(0.02)  # between two looks
        except TimeoutError:
            check(what, seen, expected)


@contextlib.asynccontextmanager
async def running(*options: str, **settings: str) -> AsyncIterator[Server]:
    """Start a server on a free port with a database of its own, and end it.

    Args:
        options: Of `steadwire serve`.
        settings: The names of settings as in the environment, without STEADWIRE_.
    """
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "proof.db"
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("STEADWIRE_")},
            "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
            "STEADWIRE_API_KEY": API_KEY,
            "STEADWIRE_STORE_PATH": str(database),
            **{f"STEADWIRE_{name}": value for name, value in settings.items()},
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "serve", "--port", "0", *options),
            cwd=folder,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                if found := re.search(rb"ws://127\.0\.0\.1:(\d+)", line):
                    break
            else:
                raise AssertionError("the server did not start")
            yield Server(int(found[1]), database)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


class Client:
    """A WebSocket client (RFC 6455) that speaks the protocol in JSON.

    Args:
        pongs: Whether it answers the server's pings.

    Attributes:
        pongs: As above; may be changed.
        publications: Data of those that arrived, in their order.
        closed: Code of the server's close frame; None while there is none.
    """

    def __init__(self, pongs: bool = True) -> None:
        self.publications: list[Any] = []
        self.closed: int | None = None
        self.pongs = pongs
        self._replies: dict[int, asyncio.Future[Json]] = {}

    async def open(self, server: Server, user: str | None = None) -> Client:
        """Connect, as *user* if the server wants tokens."""
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", server.port
        )
        self._writer.write(
            b"GET /connection/websocket HTTP/1.1\r\nHost: localhost\r\n"
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13"
            b"\r\nSec-WebSocket-Key: " + base64.b64encode(os.urandom(16)) + b"\r\n\r\n"
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        check("status of the handshake", head.split()[1], b"101")
        self._reading = asyncio.create_task(self._read())
        await self.result(connect={} if user is None else {"token": token(user)})
        return self

    async def reply(self, **command: Any) -> Json:
        """Send a command, and return its reply."""
        number = len(self._replies) + 1
        self._replies[number] = asyncio.get_running_loop().create_future()
        self.send(json.dumps({"id": number, **command}))
        waits: set[asyncio.Future[Any]] = {self._replies[number], self._reading}
        await asyncio.wait(waits, return_when="FIRST_COMPLETED", timeout=PATIENCE)
        if self._reading.done():
            self._reading.result()  # raises what was wrong with a frame
        if not self._replies[number].done():
            raise AssertionError(f"{command}: no reply; closed with {self.closed}")
        return self._replies[number].result()

    async def result(self, **command: Any) -> Json:
        """Send a command that succeeds, and return its result."""
        reply = await self.reply(**command)
        if "error" in reply:
            raise AssertionError(f"{command}: {reply['error']}")
        (name,) = command
        result: Json = reply[name]
        return result

    def reset(self) -> None:
        """Be gone without a word: no close frame, a TCP reset."""
        link = self._writer.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        """Leave."""
        self._writer.close()

    def send(self, text: str) -> None:
        """Send a text message."""
        data, mask = text.encode(), os.urandom(4)
        size = len(data)
        length = bytes([0x80 | size]) if size < 126 else struct.pack("!BH", 0xFE, size)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        self._writer.write(b"\x81" + length + mask + masked)

    async def _frame(self) -> tuple[int, bytes]:
        opcode, size = await self._reader.readexactly(2)
        if size == 126:
            (size,) = struct.unpack("!H", await self._reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self._reader.readexactly(8))
        return opcode & 0xF, await self._reader.readexactly(size)

    async def _read(self) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                opcode, data = await self._frame()
                if opcode == 0x8:
                    (self.closed,) = struct.unpack("!H", data[:2])
                    self._writer.close()
                    return
                for line in data.decode().split("\n"):
                    self._message(strict(line))

    def _message(self, message: Json) -> None:
        if not message:
            if self.pongs:
                self.send("{}")
        elif "id" in message:
            self._replies[message["id"]].set_result(message)
        elif "pub" in (push := message.get("push", {})):
            self.publications.append(push["pub"]["data"])


async def errors() -> str:
    """Four of 20 publishes meet a locked database; nothing is lost, nothing doubled."""
    async with running(STORE_LOCK_TIMEOUT="0.2") as server:
        client = await Client().open(server)
        await client.result(subscribe={"channel": "chat"})
        acknowledged: dict[int, int] = {}
        failed = []

        async def publish(number: int) -> None:
            answer = await server.api(
                "publish", channel="chat", data=number, idempotency_key=f"{number}"
            )
            if "result" in answer:
                acknowledged[number] = answer["result"]["offset"]
            else:
                check("error", answer["error"]["code"], 100)  # temporary
                failed.append(number)

        other = sqlite3.connect(server.database, isolation_level=None, timeout=10.0)
        with contextlib.closing(other):
            for number in range(20):
                if number in (3, 8, 13, 18):
                    other.execute("BEGIN IMMEDIATE")  # takes the lock for writing
                    await publish(number)
                    other.execute("ROLLBACK")
                else:
                    await publish(number)
        check("failed", failed, [3, 8, 13, 18])
        first = [number for number in range(20) if number not in failed]
        check("acknowledged", list(acknowledged), first)
        await server.until("delivered", lambda: read(client), first)

        history = await client.result(history={"channel": "chat"})  # it is answered
        check("closed", client.closed, None)
        check("top offset", history["offset"], 16)
        ready = json.loads(await server.http("GET", "/health/ready"))
        check("readiness", ready["status"], "ready")

        for number in (3, 8, 13, 18):
            await publish(number)
        everything = [*first, 3, 8, 13, 18]
        await server.until("delivered in the end", lambda: read(client), everything)
        check("offsets", list(acknowledged.values()), list(range(1, 21)))
        check("distinct", len(set(client.publications)), 20)
        client.close()
    return "20 attempted, 16 delivered, connection healthy, then 20 of 20"


async def read(client: Client) -> list[Any]:
    return list(client.publications)


def objects() -> dict[str, tuple[Any, Any]]:
    """Return what the application sends, each with what has to arrive."""
    nested: Any = {"leaf": True}
    for _ in range(20):
        nested = {"child": nested}
    cycle: list[Any] = [1]
    cycle.append(cycle)
    text = "naïve, 漢字, \U0001f680, \u2028, \x00"
    return {
        "none": (None, None),
        "null member": ({"value": None}, {"value": None}),
        "infinity": ({"value": math.inf}, {"value": None}),
        "unicode": (text, text),
        "nested": (nested, nested),
        "list": (list(range(100)), list(range(100))),
        "not a number": ([math.nan], [None]),
        "cycle": (cycle, [1, "<cycle>"]),
        "bytes": (b"\x00\xff", "AP8="),
        "set": ({2, 1}, [1, 2]),
        "exception": (
            ValueError("no"),
            {"type": "ValueError", "message": "no"},
        ),
    }


def handlers() -> Any:
    """Return the hooks of the application in `serialization` (runs in the server)."""
    from service.core.hooks import Handlers, RpcEvent, RpcResult

    kept = objects()
    before = repr(kept)

    async def rpc(event: RpcEvent) -> RpcResult:
        if event.method == "unchanged":
            return RpcResult(repr(kept) == before)
        return RpcResult(kept[event.method][0])

    return Handlers(rpc=rpc)


async def serialization() -> str:
    """What an application answers arrives as strict JSON, and is left as it was."""
    async with running("--app", "proof:handlers") as server:
        client = await Client().open(server)
        good = []
        for name, (_, expected) in objects().items():
            reply = await client.result(rpc={"method": name})
            check(name, reply.get("data"), expected)
            good.append(name)
        check(
            "objects unchanged",
            await client.result(rpc={"method": "unchanged"}),
            {"data": True},
        )
        check("closed", client.closed, None)
        client.close()
    types, more = good[:6], good[6:]
    check("more", len(more), 5)
    return f"{len(types)} of 6 serialized as strict JSON (and {len(more)} more)"


async def cleanup() -> str:
    """Of 50 connections 18 end for three causes, six each; the others stay."""
    age, timeout = 9.0, 3.0
    async with running(
        CLIENT_MAX_AGE=f"{age}",
        CLIENT_HEARTBEAT_TIMEOUT=f"{timeout}",
        CLIENT_PING_INTERVAL="0.5",
        CLIENT_PONG_TIMEOUT="0.4",
    ) as server:
        check("at first", await server.connections(), 0)
        old = [await Client().open(server) for _ in range(6)]
        await asyncio.sleep(age / 2)  # the others are to be younger by so much
        gone = [await Client().open(server) for _ in range(6)]
        silent = [await Client(pongs=False).open(server) for _ in range(6)]
        others = [await Client().open(server) for _ in range(32)]
        check("connected", await server.connections(), 50)
        for client in gone:
            client.reset()
        await server.until("left", server.connections, 32)
        closes = {"client": 6, "3012": 6, "3011": 6}
        check("closes by cause", await server.metric("closes_total"), closes)
        check("cleaned", sum(closes.values()), 18)
        check("too old", [each.closed for each in old], [3011] * 6)
        check("silent", [each.closed for each in silent], [3012] * 6)
        for client in others:
            await client.result(presence_stats={"channel": "chat"})
        check("others", [each.closed for each in others], [None] * 32)
        for client in others:
            client.close()
    return "0 -> 50 -> 18 cleaned (6 gone, 6 x 3012, 6 x 3011) -> 32"


async def isolation() -> str:
    """Ten users are sent five messages each at once; each gets their own alone."""
    async with running(
        ENVIRONMENT="production",
        TOKEN_HMAC_SECRET_KEY=TOKEN_KEY,
        CLIENT_USER_PERSONAL_CHANNEL='{"enabled":true}',
    ) as server:
        users = [f"user-{number}" for number in range(10)]
        clients = {user: await Client().open(server, user) for user in users}

        async def publish(user: str, number: int) -> None:
            answer = await server.api(
                "publish", channel=f"#{user}", data={"to": user, "number": number}
            )
            check(user, answer["result"]["offset"], number + 1)

        for number in range(5):
            await asyncio.gather(*(publish(user, number) for user in users))
        expected = {
            user: [{"to": user, "number": number} for number in range(5)]
            for user in users
        }

        async def received() -> dict[str, list[Any]]:
            return {user: list(client.publications) for user, client in clients.items()}

        await server.until("received", received, expected)
        for user, other in zip(users, users[1:] + users[:1], strict=True):
            reply = await clients[user].reply(subscribe={"channel": f"#{other}"})
            check("channel of another", reply["error"]["code"], 103)
        everything = await received()
        check("in the end", everything, expected)
        actual = sum(len(each) for each in everything.values())
        foreign = sum(
            message["to"] != user
            for user, messages in everything.items()
            for message in messages
        )
        check("messages", actual, 50)
        check("foreign", foreign, 0)
        for client in clients.values():
            client.close()
    return f"{len(users)} users, {actual} of 50 messages, {foreign} foreign"


async def heartbeat() -> str:
    """Two of five are silent: one comes back to life, one dies and is forgotten."""
    timeout = 4.0
    async with running(
        CLIENT_HEARTBEAT_TIMEOUT=f"{timeout}",
        CLIENT_PING_INTERVAL="1",
        CLIENT_PONG_TIMEOUT="0.5",
    ) as server:
        clients = [await Client(pongs=n not in (2, 4)).open(server) for n in range(5)]
        last = time.monotonic()  # the last that client 4 says comes before this
        check("registered", await server.connections(), 5)

        async def levels() -> dict[str, int]:
            found: Counter[str] = Counter()
            for name, count in (await server.metric("heartbeat_level")).items():
                stale = name in ("degraded", "suspect")
                found["stale" if stale else name] += count
            return dict(found)

        await server.until("stale", levels, {"healthy": 3, "stale": 2})
        await clients[2].result(presence_stats={"channel": "chat"})
        await server.until("resurrected", levels, {"healthy": 4, "stale": 1})
        clients[2].pongs = True
        clients[2].send("{}")  # a pong for the ping that waits for one
        await server.until("dead", levels, {"healthy": 4, "dead": 1})
        check("not before", time.monotonic() - last >= timeout - 0.01, True)
        await server.until("purged", levels, {"healthy": 4})
        check("not before 2 x", time.monotonic() - last >= 2 * timeout - 0.01, True)
        steps = await server.metric("heartbeat_steps_total")
        check("dead", steps["dead"], 1)
        check("closed", [each.closed for each in clients], [None] * 4 + [3012])
        for client in clients:
            client.close()
    return "5 registered, 3 healthy, 2 stale; one resurrected: 4; purged at 2 x"


async def main(names: list[str]) -> int:
    """Run the scenarios of these names, or all; return the exit status."""
    every = (errors, serialization, cleanup, isolation, heartbeat)
    scenarios = [each for each in every if not names or each.__name__ in names]
    started = time.monotonic()

    async def run(scenario: Callable[[], Awaitable[str]]) -> bool:
        try:
            figures = await scenario()
        except Exception as error:
            print(f"FAIL  {scenario.__name__:<14} {error!r}", flush=True)
            return False
        print(f"PASS  {scenario.__name__:<14} {figures}", flush=True)
        return True

    passed = await asyncio.gather(*(run(scenario) for scenario in scenarios))
    seconds = time.monotonic() - started
    print(f"{sum(passed)} of {len(scenarios)} scenarios in {seconds:.1f} s")
    return 0 if passed and all(passed) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
