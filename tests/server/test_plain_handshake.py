"""Handshakes that are read without h11: which, and that they are served as by it.

A server in this process serves heads on real sockets, on both paths: the plain one, and
that of h11, which is all there is when no head is taken for plain.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import h11
import pytest
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config

from service.core.refusal_log import RefusalLog
from service.server import tcp_connection
from service.server.http1 import REQUESTS
from service.server.install import install
from service.server.plain_handshake import plain_head
from service.settings import load

TARGET = b"/connection/websocket"
FIELDS = {
    b"Host": b"127.0.0.1:8000",
    b"Upgrade": b"websocket",
    b"Connection": b"Upgrade",
    b"Sec-WebSocket-Key": b"dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version": b"13",
}


def head(
    fields: dict[bytes, bytes] = FIELDS,
    target: bytes = TARGET,
    *more: tuple[bytes, bytes],
) -> bytes:
    lines = b"".join(b"%b: %b\r\n" % pair for pair in (*fields.items(), *more))
    return b"GET %b HTTP/1.1\r\n%b\r\n" % (target, lines)


def with_field(name: bytes, value: bytes) -> bytes:
    return head({**FIELDS, name: value})


def without(name: bytes) -> bytes:
    return head({key: value for key, value in FIELDS.items() if key != name})


PLAIN = {
    "as clients send it": head(),
    "a query": head(target=TARGET + b"?format=protobuf&a=%20b"),
    "Firefox's Connection": with_field(b"Connection", b"keep-alive, Upgrade"),
    "lower case": with_field(b"Connection", b"upgrade"),
    "a subprotocol": with_field(b"Sec-WebSocket-Protocol", b"a, centrifuge-protobuf"),
    "an extension": with_field(
        b"Sec-WebSocket-Extensions", b"permessage-deflate; client_max_window_bits"
    ),
    "a browser's": with_field(b"User-Agent", b'Mozilla/5.0 (X11; "Linux") Gecko/1'),
    "a cookie": with_field(b"Cookie", b"a=b; c=d"),
    "a proxy's": with_field(b"X-Forwarded-For", b"10.0.0.1, 10.0.0.2"),
}

OTHER = {
    "nothing": b"",
    "not all of it": head()[:-1],
    "bytes behind it": head() + b"\x81\x80\0\0\0\0",
    "a request behind it": head() + head(),
    "an empty line before it": b"\r\n" + head(),
    "POST": head().replace(b"GET ", b"POST "),
    "HTTP/1.0": head().replace(b"/1.1", b"/1.0"),
    "HTTP/2.0": head().replace(b"/1.1", b"/2.0"),
    "two spaces before the version": head().replace(b" HTTP", b"  HTTP"),
    "absolute form": head(target=b"http://x" + TARGET),
    "asterisk form": head(target=b"*"),
    "no slash": head(target=b"connection"),
    "a fragment": head(target=TARGET + b"#a"),
    "a backslash": head(target=b"/\\connection"),
    "a target that is not ASCII": head(target=b"/\xff"),
    "LF alone": head().replace(b"\r\n", b"\n"),
    "one LF alone": head().replace(b"\r\nHost", b"\nHost"),
    "CR alone": with_field(b"X", b"a\rb"),
    "NUL": with_field(b"X", b"a\0b"),
    "obs-fold": with_field(b"X", b"a\r\n b"),
    "obs-text": with_field(b"X", b"\xc3\xa4"),
    "a tab": with_field(b"X", b"a\tb"),
    "no space after a colon": head().replace(b"Host: ", b"Host:"),
    "two spaces after a colon": head().replace(b"Host: ", b"Host:  "),
    "a space before a colon": head().replace(b"Host: ", b"Host : "),
    "a space at the end": with_field(b"X", b"a "),
    "an empty field": with_field(b"X", b""),
    "a field without a name": with_field(b"", b"a"),
    "an underscore in a name": with_field(b"X_Y", b"a"),
    "a line without a colon": head().replace(b"Host: ", b"Host"),
    "no fields": b"GET / HTTP/1.1\r\n\r\n",
    "a name twice": head(FIELDS, TARGET, (b"X", b"a"), (b"x", b"b")),
    "two keys": head(FIELDS, TARGET, (b"sec-websocket-key", FIELDS[b"Upgrade"])),
    "two hosts": head(FIELDS, TARGET, (b"HOST", b"a")),
    "two lines of a list": head(FIELDS, TARGET, (b"Connection", b"close")),
    "no Host": without(b"Host"),
    "no key": without(b"Sec-WebSocket-Key"),
    "no version": without(b"Sec-WebSocket-Version"),
    "no Upgrade": without(b"Upgrade"),
    "no Connection": without(b"Connection"),
    "a short key": with_field(b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25j"),
    "another version": with_field(b"Sec-WebSocket-Version", b"12"),
    "two versions": with_field(b"Sec-WebSocket-Version", b"13, 8"),
    "h2c": with_field(b"Upgrade", b"h2c"),
    "two upgrades": with_field(b"Upgrade", b"websocket, h2c"),
    "an Upgrade in capitals": with_field(b"Upgrade", b"WebSocket"),
    "Connection: close": with_field(b"Connection", b"close, Upgrade"),
    "another token": with_field(b"Connection", b"Upgrade, HTTP2-Settings"),
    "a body": with_field(b"Content-Length", b"2"),
    "an empty body": with_field(b"Content-Length", b"0"),
    "a body in chunks": with_field(b"Transfer-Encoding", b"chunked"),
    "trailers": with_field(b"Trailer", b"x"),
    "Expect": with_field(b"Expect", b"100-continue"),
    "TE": with_field(b"TE", b"trailers"),
    "settings of HTTP/2": with_field(b"HTTP2-Settings", b"AAAA"),
}


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_a_plain_head_is_what_h11_reads(data: bytes) -> None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request = connection.next_event()
    assert plain_head(data) == (request.target, list(request.headers))
    assert type(connection.next_event()) is h11.EndOfMessage


@pytest.mark.parametrize("data", OTHER.values(), ids=OTHER)
def test_any_other_head_is_left_to_h11(data: bytes) -> None:
    assert plain_head(data) is None


def test_a_head_that_is_refused_takes_time_in_proportion_to_its_size() -> None:
    """It would not end, had the expression a choice to take back."""
    for piece in (b"X: a\r\n", b"X: a a\r\n", b"X: a  a", b"/", b"X"):
        assert plain_head(head()[:-2] + piece * 2000) is None
        assert plain_head(b"GET /" + piece * 2000) is None


# Both paths on a socket.

App = Callable[[Any, Any, Any], Awaitable[None]]


class Server:
    """Serves an application on a port of this process.

    Attributes:
        scopes: That the application was called with.
        got: What it received, in order.
        config: Hypercorn's.
    """

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.got: list[dict[str, Any]] = []
        self.app: App = self.accept
        self.config = Config()
        self.goes_on = asyncio.Event()
        self.suspended = asyncio.Event()

    async def accept(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 3000, "reason": "done"})

    async def call(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)

        async def received() -> Any:
            message = await receive()
            self.got.append(message)
            return message

        await received()
        await self.app(scope, received, send)

    async def wait(self) -> None:
        """Let the application wait until the test lets it go on."""
        self.suspended.set()
        await self.goes_on.wait()

    async def ask(self, data: bytes, *, end: bool = True) -> bytes:
        """Send *data*, and the end unless it is not to be; return the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with contextlib.closing(writer):
            writer.write(data)
            if end:
                writer.write_eof()
            async with asyncio.timeout(30.0):
                answer = await reader.read()
        await writer.wait_closed()
        return re.sub(rb"date: [^\r]+", b"date: now", answer)


class Heads:
    """Which heads were taken for plain.

    Attributes:
        asked: How many there were.
        plain: How many were.
        h11: Whether none may be.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = self.plain = 0
        self.h11 = False
        monkeypatch.setattr(tcp_connection, "plain_head", self)

    def __call__(self, data: bytes) -> Any:
        self.asked += 1
        found = None if self.h11 else plain_head(data)
        self.plain += found is not None
        return found


@pytest.fixture(params=[False, True], ids=["frames", "wsproto"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    found = Server()
    loop = asyncio.get_running_loop()
    settings = load({}, {"server": {"wsproto": request.param}})
    tracker = install(settings, RefusalLog())
    config, context = found.config, WorkerContext(None)
    config.errorlog = None  # an application of these fails
    config.websocket_ping_interval = None

    async def serve(reader: Any, writer: Any) -> None:
        await tcp_connection.TcpConnection(
            tracker, ASGIWrapper(found.call), loop, config, context, {}, reader, writer
        )

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    found.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield found
        await tracker.emptied()


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> Heads:
    return Heads(monkeypatch)


async def on_both(
    server: Server, heads: Heads, data: bytes, *, end: bool = True
) -> tuple[bytes, list[dict[str, Any]]]:
    """Ask on both paths; return the answer and what was received: they are the same."""
    answers, scopes, got = [], [], []
    for heads.h11 in (False, True):
        server.scopes.clear()
        server.got.clear()
        answers.append(await server.ask(data, end=end))
        scopes += [plain_scope(scope) for scope in server.scopes] or [None]
        got.append(list(server.got))
    heads.h11 = False
    assert answers[0] == answers[1]
    assert scopes[0] == scopes[1]
    assert got[0] == got[1]
    return answers[0], got[0]


def plain_scope(scope: dict[str, Any]) -> dict[str, Any]:
    """Return what is the same on every connection."""
    return {**scope, "client": scope["client"][0], "state": sorted(scope["state"])}


ACCEPTED = b"HTTP/1.1 101 \r\n"


async def test_a_plain_head_is_served_as_by_h11(server: Server, heads: Heads) -> None:
    for name, data in PLAIN.items():
        heads.plain = 0
        answer, got = await on_both(server, heads, data)
        assert heads.plain == 1, name
        assert answer.startswith(ACCEPTED), name
        assert answer.endswith(b"\r\n\r\n\x88\x06\x0b\xb8done"), name
        assert got == [{"type": "websocket.connect"}], name


async def test_any_other_head_is_served_by_h11(server: Server, heads: Heads) -> None:
    for name, data in OTHER.items():
        await on_both(server, heads, data)
        assert heads.plain == 0, name


async def test_a_head_in_two_pieces_is_h11s(server: Server, heads: Heads) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head()[:9])
    async with asyncio.timeout(30.0):
        while not heads.asked:
            await asyncio.sleep(0)
        writer.write(head()[9:])
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(ACCEPTED)
    writer.close()
    await writer.wait_closed()
    assert heads.plain == 0


@pytest.mark.parametrize(
    "setting", [{"websocket_ping_interval": 60.0}, {"h11_pass_raw_headers": True}]
)
async def test_what_only_the_other_path_can_do(
    server: Server, heads: Heads, setting: dict[str, Any]
) -> None:
    for name, value in setting.items():
        setattr(server.config, name, value)
    assert (await server.ask(head(), end=False)).startswith(ACCEPTED)
    assert heads.asked == 0


async def test_a_long_head_is_h11s(server: Server, heads: Heads) -> None:
    """There may be more of what was read."""
    fields = {**FIELDS, b"Cookie": b"a" * 5000}
    assert (await server.ask(head(fields), end=False)).startswith(ACCEPTED)
    assert heads.plain == 0


async def test_a_second_request_is_h11s(server: Server, heads: Heads) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})
        else:
            await server.accept(scope, receive, send)

    server.app = app
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(30.0):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
        writer.write(head())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(ACCEPTED)
    writer.close()
    await writer.wait_closed()
    assert (heads.asked, heads.plain) == (1, 0)


ANSWERS: dict[str, list[dict[str, Any]]] = {
    "a close": [{"type": "websocket.close", "code": 1000}],
    "a refusal": [
        {
            "type": "websocket.http.response.start",
            "status": 429,
            "headers": [(b"retry-after", b"1"), (b"content-length", b"2")],
        },
        {"type": "websocket.http.response.body", "body": b"a", "more_body": True},
        {"type": "websocket.http.response.body", "body": b"b"},
    ],
    "a subprotocol": [{"type": "websocket.accept", "subprotocol": "b"}],
    "one that was not offered": [{"type": "websocket.accept", "subprotocol": "c"}],
    "fields": [{"type": "websocket.accept", "headers": [(b"x-name", b"value")]}],
    "a field of ours": [{"type": "websocket.accept", "headers": [(b"upgrade", b"x")]}],
    "two lines in a field": [
        {"type": "websocket.accept", "headers": [(b"connection", b"a\r\nx-b: c")]}
    ],
    "a field that it may not have": [
        {"type": "websocket.accept", "headers": [(b":status", b"200")]}
    ],
    "what is no answer": [{"type": "websocket.send", "text": "early"}],
    "nothing": [],
}


@pytest.mark.parametrize("suspended", [False, True], ids=["at once", "suspended"])
@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS)
async def test_every_answer_is_that_of_h11(
    server: Server, heads: Heads, answers: list[dict[str, Any]], *, suspended: bool
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if suspended:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        for message in answers:
            await send(message)

    server.app = app
    offer = with_field(b"Sec-WebSocket-Protocol", b"a, b")
    answer, _ = await on_both(server, heads, offer, end=False)
    assert b"\r\nx-b" not in answer
    assert heads.plain == 1


async def test_frames_before_the_answer(server: Server, heads: Heads) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await server.wait()
        await receive()

    server.app = app
    writer.write(head())
    async with asyncio.timeout(30.0):
        await server.suspended.wait()
        writer.write(b"\x81\x80\0\0\0\0")
        answer = await reader.readuntil(b"\r\n\r\n")
        server.goes_on.set()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"connection: close" in answer
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    assert heads.plain == 1
    assert [message["type"] for message in server.got] == [
        "websocket.connect",
        "websocket.disconnect",
    ]


async def test_the_end_before_the_answer(server: Server, heads: Heads) -> None:
    told = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        server.suspended.set()
        await receive()
        told.set()

    server.app = app
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head())
    async with asyncio.timeout(30.0):
        await server.suspended.wait()
        writer.close()
        await writer.wait_closed()
        await told.wait()
    assert server.got[-1]["type"] == "websocket.disconnect"
    assert server.got[-1]["code"] == 1006
    assert heads.plain == 1


async def test_the_end_that_comes_with_the_head(server: Server, heads: Heads) -> None:
    """The task that reads has not run when the transport has both."""
    told = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await receive()
        told.set()

    server.app = app
    with socket.create_connection(("127.0.0.1", server.port)) as peer:
        peer.sendall(head())
        peer.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(30.0):
            await told.wait()
    assert server.got[-1] == {
        "type": "websocket.disconnect",
        "code": 1006,
        "reason": "",
    }
    assert heads.plain == 1


class Receiver:
    """Takes the frames of a WebSocket over."""

    busy = False

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.ended = asyncio.Event()

    def receive(self, message: str | bytes) -> None:
        self.events.append(message)

    def gone(self, code: int) -> None:
        self.events.append(code)
        self.ended.set()


@pytest.mark.parametrize("suspended", [False, True], ids=["at once", "suspended"])
@pytest.mark.parametrize("ends", ["with the head", "later"])
async def test_the_end_of_one_that_is_handed_over(
    server: Server, heads: Heads, ends: str, *, suspended: bool
) -> None:
    receiver = Receiver()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        frames = scope["state"].get("steadwire.frames")
        if suspended:
            await asyncio.sleep(0)
        if frames is None:  # wsproto has no such thing
            while (message := await receive())["type"] != "websocket.disconnect":
                receiver.receive(message["text"])
            receiver.gone(message["code"])
        elif not frames.hand_over(receiver):
            receiver.gone((await receive())["code"])

    server.app = app
    with socket.create_connection(("127.0.0.1", server.port)) as peer:
        peer.sendall(head())
        if ends == "later":
            peer.setblocking(False)
            async with asyncio.timeout(30.0):
                answer = await asyncio.get_running_loop().sock_recv(peer, 4096)
            assert answer.startswith(ACCEPTED)
            peer.sendall(b"\x81\x82\0\0\0\0hi")
        peer.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(30.0):
            await receiver.ended.wait()
    assert receiver.events == [*(["hi"] if ends == "later" else []), 1006]
    assert heads.plain == 1


async def test_what_was_read_before_the_answer_is_handled_before_what_came_after(
    server: Server, heads: Heads
) -> None:
    """The application accepts when much has been read, which its task has not seen."""
    receiver = Receiver()
    texts = [f"{number} ".ljust(1000, "x") for number in range(1000)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reader = scope["state"]["steadwire.abort"].__self__.reader
        server.suspended.set()
        while not reader._buffer:
            await asyncio.sleep(0)
        await send({"type": "websocket.accept"})
        frames = scope["state"].get("steadwire.frames")
        if frames is not None:
            assert frames.hand_over(receiver)
            return
        while (message := await receive())["type"] != "websocket.disconnect":
            receiver.receive(message["text"])
        receiver.gone(message["code"])

    server.app = app
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head())
    async with asyncio.timeout(30.0):
        await server.suspended.wait()
        for text in texts:
            writer.write(b"\x81\xfe\x03\xe8\0\0\0\0" + text.encode())
        writer.write(b"\x88\x82\0\0\0\0\x03\xe8")
        await receiver.ended.wait()
    writer.close()
    await writer.wait_closed()
    assert receiver.events == [*texts, 1000]
    assert heads.plain == 1


async def test_an_address_has_its_share_of_a_turn(server: Server, heads: Heads) -> None:
    """Those that come in one turn are begun `REQUESTS` at a time."""
    turn, turns = 0, []
    called = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        turns.append(turn)
        if len(turns) == 3 * REQUESTS:
            called.set()
        await server.accept(scope, receive, send)

    server.app = app
    with contextlib.ExitStack() as stack:
        for _ in range(3 * REQUESTS):
            peer = stack.enter_context(
                socket.create_connection(("127.0.0.1", server.port))
            )
            peer.sendall(head())
        async with asyncio.timeout(30.0):
            while not called.is_set():
                turn += 1
                await asyncio.sleep(0)
    assert heads.plain == 3 * REQUESTS
    assert max(Counter(turns).values()) == REQUESTS


async def test_every_head_is_answered_as_by_h11(server: Server, heads: Heads) -> None:
    """Heads of all sorts, most of them with a change or two."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    sorts = [[*PLAIN.values()], [*OTHER.values()]]
    pieces = (b"", b" ", b"\r\n", b":", b",", b"\t", b"\0", b"\x80", b"a", b"%", b"?")
    for _ in range(60):
        data = bytearray(rng.choice(rng.choice(sorts)))
        for _ in range(rng.choice([0, 1, 1, 2])):
            at = rng.randrange(len(data) + 1)
            piece = rng.choice(pieces)
            data[at : at + rng.choice([0, 1, 1, 3])] = piece
        await on_both(server, heads, bytes(data))
