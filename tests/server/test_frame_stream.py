"""Our WebSocket stream, turn by turn: what waits, and what may happen meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from hypercorn.config import Config
from hypercorn.protocol.events import Request, Response, StreamClosed

from _speedups import SharedFrame, SocketWriter
from service.server.frame_stream import FrameStream
from service.settings import ServerSettings
from tests.speedups.streams import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame

HEADERS = [
    (b"host", b"x"),
    (b"upgrade", b"websocket"),
    (b"connection", b"upgrade"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"sec-websocket-version", b"13"),
]


class Tcp:
    """The TCP connection below; it notes what it is told."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.waiting = 0  # bytes, that each write tells
        self.drained: asyncio.Future[None] | None = None
        self.reading = True
        self.target: Any = None
        self.finished = self.aborted = self.eof = self.detached = False
        self.socket = SocketWriter(self, -1)

    # As the transport of its socket, which calls `write` below, too.

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def request_begun(self, stream: object) -> None: ...

    def request_complete(self, stream: object) -> None: ...

    def request_over(self, stream: object) -> None: ...

    def take_over(self, stream: object) -> None: ...

    def divert(self, target: Any) -> None:
        self.target = target

    def write(self, data: bytes) -> int:
        self.written.append(data)
        return self.waiting

    async def drain(self) -> None:
        self.drained = asyncio.get_running_loop().create_future()
        await self.drained

    def finish(self, patience: float | None = None) -> None:
        self.finished = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def pass_eof(self) -> None:
        self.eof = True

    def detach(self) -> None:
        self.detached = True

    def abort(self) -> None:
        self.aborted = True


class State(dict[str, Any]):
    """The connection's state, as `TcpConnection` makes it."""

    connection: Tcp


class Tasks:
    """Hypercorn's group of tasks: the application is stepped by the test."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue(2)
        self.receive: Callable[[], Coroutine[Any, Any, Any]] = self.queue.get
        self.spawned: list[asyncio.Task[None]] = []

    async def spawn_app(self, app: Any, config: Any, scope: Any, send: Any) -> Any:
        await app(scope, self.queue.get, send)
        return self.queue.put

    def spawn(self, work: Callable[..., Coroutine[Any, Any, None]]) -> None:
        self.spawned.append(asyncio.ensure_future(work()))


class Receiver:
    """The application that takes frames over; `limit` messages make it busy."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self.messages: list[Any] = []
        self.limit = limit
        self.callback: Callable[[], object] | None = None
        self.fails = False
        self.ends: list[int] = []

    def gone(self, code: int) -> None:
        self.ends.append(code)

    @property
    def busy(self) -> bool:
        return len(self.messages) >= self.limit

    def receive(self, message: Any) -> None:
        assert not self.busy
        if self.fails:
            raise RuntimeError("a bug")
        self.messages.append(message)

    def on_ready(self, callback: Callable[[], object]) -> None:
        assert self.callback is None
        self.callback = callback

    def takes(self, more: int) -> None:
        """Take *more* messages from now on, and tell the stream."""
        self.limit += more
        self.tell()

    def tell(self) -> None:
        callback, self.callback = self.callback, None
        assert callback is not None
        callback()


class Quota:
    """The frames that may come: all, at the share that the test gives."""

    def __init__(self) -> None:
        self.shares: deque[bool] = deque()
        self.later: Callable[[], object] | None = None
        self.taken: list[int] = []
        self.frames = 1 << 30

    def take(self, size: int = 0) -> bool:
        self.frames -= 1
        return self.frames >= 0

    def read(self, size: int) -> None:
        raise AssertionError("of the stock stream")

    def may_read(self, size: int, later: Callable[[], object]) -> bool:
        self.taken.append(size)
        if self.shares and not self.shares.popleft():
            self.later = later
            return False
        return True


class Bench:
    """A stream: that of a handshake, or `open` once it was accepted."""

    def __init__(self) -> None:
        self.tcp = Tcp()
        self.tasks = Tasks()
        self.scope: Any = None
        self.sent: list[Any] = []

    async def open(self) -> Bench:
        await self.begin()
        await self.stream.app_send({"type": "websocket.accept"})  # type: ignore[typeddict-item]
        [response] = self.sent
        assert isinstance(response, Response) and response.status_code == 101
        assert self.scope["state"]["steadwire.frames"] is self.stream
        return self

    async def begin(self) -> Bench:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.scope = scope
            self.tasks.receive = receive

        async def send(event: Any) -> None:
            self.sent.append(event)

        state = State()
        state.connection = self.tcp
        config = Config()
        stream = FrameStream(
            lambda window: SharedFrame(),
            ServerSettings(message_size=20_000),
            app,
            config,
            SimpleNamespace(terminated=asyncio.Event()),
            self.tasks,
            False,
            None,
            None,
            send,
            1,
        )
        self.stream = stream
        await stream.handle(
            Request(
                stream_id=1,
                headers=HEADERS,
                http_version="1.1",
                method="GET",
                raw_path=b"/",
                state=state,  # type: ignore[arg-type]
            )
        )
        assert (await self.tasks.receive())["type"] == "websocket.connect"
        return self

    def come(self, *frames: bytes) -> None:
        self.tcp.target.data_received(b"".join(frames))

    async def disconnect(self) -> tuple[int, str]:
        message = await self.tasks.receive()
        assert message["type"] == "websocket.disconnect"
        return message["code"], message["reason"]


def text(word: str) -> bytes:
    return frame(TEXT, word.encode())


def close(code: int) -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big"))


async def turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_messages_go_to_the_receiver_at_once_in_order() -> None:
    bench, receiver = await Bench().open(), Receiver()
    bench.stream.hand_over(receiver)
    bench.come(text("1"), frame(BINARY, b"2"), frame(TEXT, b"3", fin=False))
    bench.come(frame(PING, b"p"), frame(CONTINUATION, b"3"))
    assert receiver.messages == ["1", b"2", "33"]
    assert bench.tcp.written == [b"\x8a\x01p"]


async def test_a_message_for_many_is_framed_once() -> None:
    bench = await Bench().open()
    word = "x" * 200
    for _ in range(3):
        assert bench.stream.write_message(word) is None
    assert bench.tcp.written[0] is bench.tcp.written[1] is bench.tcp.written[2]
    assert bench.stream.write_message(b"x") is None
    assert bench.stream.write_message("x") is None
    assert bench.tcp.written[3:] == [b"\x82\x01x", b"\x81\x01x"]


async def test_a_write_waits_while_the_peer_does_not_read() -> None:
    bench = await Bench().open()
    bench.tcp.waiting = 64 * 1024
    assert bench.stream.write_message("x") is None
    bench.tcp.waiting += 1
    waits = bench.stream.write_message("x")
    assert waits is not None
    waits.close()
    assert len(bench.tcp.written) == 2


async def test_messages_before_the_hand_over_come_first() -> None:
    bench, receiver = await Bench().open(), Receiver()
    bench.come(text("1"), text("2"), text("3"))  # the queue has room for two
    bench.come(text("4"))
    assert not bench.tcp.reading
    bench.stream.hand_over(receiver)
    assert receiver.messages == ["1", "2", "3", "4"]
    assert bench.tcp.reading


async def test_after_the_end_what_came_before_it_is_left_to_asgi() -> None:
    bench, receiver = await Bench().open(), Receiver()
    bench.come(text("1"), close(1000))
    bench.stream.hand_over(receiver)
    assert receiver.messages == []
    assert (await bench.tasks.receive())["text"] == "1"
    assert await bench.disconnect() == (1000, "")


async def test_a_full_queue_waits_for_the_application() -> None:
    bench = await Bench().open()
    bench.come(*map(text, "12345"), close(3000))
    got = [(await bench.tasks.receive())["text"] for _ in range(5)]
    assert got == list("12345")
    assert await bench.disconnect() == (3000, "")
    assert bench.tcp.finished


async def test_a_busy_receiver_stops_the_reading_until_it_is_ready() -> None:
    bench, receiver = await Bench().open(), Receiver(limit=1)
    bench.stream.hand_over(receiver)
    bench.come(text("1"), text("2"), frame(PING, b"p"), text("3"))
    assert receiver.messages == ["1"]
    bench.come(text("4"))
    assert not bench.tcp.reading
    receiver.takes(1)
    assert receiver.messages == ["1"]  # not inside its own call
    await turn()
    assert receiver.messages == ["1", "2"]
    assert bench.tcp.written == []
    receiver.takes(5)
    await turn()
    assert receiver.messages == ["1", "2", "3", "4"]
    assert bench.tcp.written == [b"\x8a\x01p"]
    assert bench.tcp.reading


async def test_a_receiver_that_is_busy_again_in_its_turn() -> None:
    bench, receiver = await Bench().open(), Receiver(limit=1)
    bench.stream.hand_over(receiver)
    bench.come(text("1"), text("2"))
    receiver.tell()
    await turn()
    assert receiver.messages == ["1"]
    receiver.takes(1)
    await turn()
    assert receiver.messages == ["1", "2"]


async def test_a_close_comes_after_what_waits_before_it() -> None:
    bench, receiver = await Bench().open(), Receiver(limit=1)
    bench.stream.hand_over(receiver)
    bench.come(text("1"), text("2"), close(1001), text("3"))
    assert not bench.tcp.finished
    receiver.takes(9)
    await turn()
    assert receiver.messages == ["1", "2"]
    assert bench.tcp.written == [b"\x88\x02\x03\xe9"]
    await turn()
    assert receiver.ends == [1001]


async def test_the_end_of_the_data_waits_for_what_came_before_it() -> None:
    bench, receiver = await Bench().open(), Receiver(limit=1)
    bench.stream.hand_over(receiver)
    bench.come(text("1"), text("2"))
    assert bench.tcp.target.eof_received() is False
    receiver.takes(9)
    await turn()
    assert receiver.messages == ["1", "2"]
    assert bench.tcp.eof
    assert bench.tcp.target.eof_received() is True


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "closed by us"])
async def test_after_the_end_nothing_that_waits_is_handled(lost: bool) -> None:
    bench, receiver = await Bench().open(), Receiver(limit=1)
    bench.stream.hand_over(receiver)
    bench.come(text("1"), text("2"))
    bench.come(text("3"))
    if lost:
        await bench.stream.handle(StreamClosed(stream_id=1))
    else:
        await bench.stream.close(3008, "slow")
        assert bench.tcp.written == [b"\x88\x06\x0b\xc0slow"]
        assert bench.tcp.finished
    assert receiver.ends == []  # not inside the call
    receiver.takes(9)
    await turn()
    assert receiver.ends == [1006 if lost else 3008]
    bench.come(text("4"))
    assert receiver.messages == ["1"]
    assert bench.stream.write_message("late") is None
    assert not bench.tcp.written[1:]


async def test_the_call_of_the_application_may_end_before_its_websocket() -> None:
    bench, receiver = await Bench().open(), Receiver()
    assert bench.stream.hand_over(receiver)
    assert bench.tcp.detached
    # What Falcon and Hypercorn send when the application's call returns:
    await bench.stream.app_send({"type": "websocket.close", "code": 1000, "reason": ""})
    await bench.stream.app_send(None)
    assert (bench.tcp.written, bench.tcp.finished) == ([], False)
    bench.come(text("1"))
    assert receiver.messages == ["1"]
    bench.stream.write_message("2")
    assert bench.tcp.written == [b"\x81\x012"]
    bench.stream.peer_gone()
    await turn()
    assert receiver.ends == [1006]


async def test_what_has_ended_is_not_handed_over() -> None:
    bench, receiver = await Bench().open(), Receiver()
    bench.come(text("1"), close(1001))
    assert not bench.stream.hand_over(receiver)
    assert not bench.tcp.detached
    assert (await bench.tasks.receive())["text"] == "1"
    assert await bench.disconnect() == (1001, "")
    assert (receiver.messages, receiver.ends) == ([], [])


async def test_what_has_ended_before_it_is_accepted_can_be_written_to() -> None:
    bench, receiver = await Bench().begin(), Receiver()
    await bench.stream.handle(StreamClosed(stream_id=1))
    await bench.stream.app_send({"type": "websocket.accept"})  # type: ignore[typeddict-item]
    assert bench.sent == []
    assert bench.stream.write_message("x") is None
    assert not bench.stream.hand_over(receiver)
    assert await bench.disconnect() == (1006, "")
    assert bench.tcp.written == []


async def test_the_end_that_waits_while_it_is_handed_over_comes_after_the_rest() -> (
    None
):
    bench, receiver = await Bench().open(), Receiver()
    bench.come(text("1"), text("2"), text("3"), close(1001))  # the queue has room for 2
    assert bench.stream.hand_over(receiver)
    assert receiver.messages == ["1", "2", "3"]
    assert receiver.ends == []
    await turn()
    assert receiver.ends == [1001]


async def test_the_end_of_the_data_while_it_is_handed_over_is_passed_on() -> None:
    bench, receiver = await Bench().open(), Receiver()
    bench.come(text("1"), text("2"), text("3"))  # the queue has room for two
    assert bench.tcp.target.eof_received() is False
    assert bench.stream.hand_over(receiver)
    assert receiver.messages == ["1", "2", "3"]
    assert bench.tcp.eof


async def test_a_receiver_that_is_busy_when_it_takes_the_frames_over() -> None:
    bench, receiver = await Bench().open(), Receiver(limit=0)
    bench.come(text("1"))
    assert bench.stream.hand_over(receiver)
    assert receiver.messages == []
    receiver.takes(1)
    await turn()
    assert receiver.messages == ["1"]


async def test_the_first_of_two_ends_counts() -> None:
    bench, receiver = await Bench().open(), Receiver()
    bench.stream.hand_over(receiver)
    bench.come(close(1001))
    await bench.stream.close(3008, "slow")
    bench.stream.peer_gone()
    await bench.stream.handle(StreamClosed(stream_id=1))
    await turn()
    assert receiver.ends == [1001]
    assert bench.tcp.written == [b"\x88\x02\x03\xe9"]


async def test_a_piece_in_each_turn() -> None:
    bench, receiver = await Bench().open(), Receiver()
    bench.stream.hand_over(receiver)
    small = text("")
    bench.come(small * 1700)  # 10,200 bytes
    assert len(receiver.messages) == 682
    assert not bench.tcp.reading
    await turn()
    bench.come(text("last"))
    for _ in range(3):
        await turn()
    assert receiver.messages == [""] * 1700 + ["last"]
    assert bench.tcp.reading


async def test_the_share_of_an_address() -> None:
    bench, receiver, quota = await Bench().open(), Receiver(), Quota()
    bench.scope["state"]["steadwire.limit_frames"](quota)
    bench.stream.hand_over(receiver)
    quota.shares.extend([True, False])
    bench.come(text("1"))
    bench.come(text("2"))
    bench.come(text("3"))
    assert receiver.messages == ["1"]
    assert bench.tcp.reading  # what waits is little
    assert quota.later is not None
    quota.later()
    assert receiver.messages == ["1", "2"]  # no more than was waited for
    for _ in range(2):
        await turn()
    assert receiver.messages == ["1", "2", "3"]
    assert quota.taken == [7, 7, 7]
    assert bench.tcp.reading


async def test_much_that_waits_for_its_share_stops_the_reading() -> None:
    bench, receiver, quota = await Bench().open(), Receiver(), Quota()
    bench.scope["state"]["steadwire.limit_frames"](quota)
    bench.stream.hand_over(receiver)
    quota.shares.append(False)
    first, second = "x" * 2000, "y" * 2080
    bench.come(text(first))
    bench.come(text(second))  # 4,096 bytes with the heads of both
    assert bench.tcp.reading
    bench.come(text("1"))
    assert not bench.tcp.reading
    assert quota.later is not None
    quota.later()
    for _ in range(3):
        await turn()
    assert receiver.messages == [first, second, "1"]
    assert bench.tcp.reading


@pytest.mark.parametrize("kind", ["ping", "pong", "fragment"])
async def test_after_a_frame_too_many_nothing_is_handled(kind: str) -> None:
    bench, receiver, quota = await Bench().open(), Receiver(), Quota()
    quota.frames = 2
    bench.scope["state"]["steadwire.limit_frames"](quota)
    bench.stream.hand_over(receiver)
    one = {
        "ping": frame(PING, b"p"),
        "pong": frame(PONG),
        "fragment": frame(CONTINUATION, b"f", fin=False),
    }[kind]
    begin = frame(TEXT, b"", fin=False) if kind == "fragment" else frame(PONG)
    bench.come(text("1"), begin, one, one, text("2"), close(1000))
    bench.come(text("3"))
    assert receiver.messages == ["1"]
    assert bench.tcp.written == ([b"\x8a\x01p"] if kind == "ping" else [])
    assert bench.tcp.reading  # what comes is thrown away


async def test_pongs_that_are_not_read_stop_the_reading() -> None:
    bench, receiver = await Bench().open(), Receiver()
    bench.stream.hand_over(receiver)
    bench.tcp.waiting = 64 * 1024 + 1
    bench.come(frame(PING), text("1"))
    bench.come(text("2"))
    await turn()
    assert receiver.messages == [] and not bench.tcp.reading
    assert bench.tcp.drained is not None
    bench.tcp.waiting = 0
    bench.tcp.drained.set_result(None)
    await turn()
    assert receiver.messages == ["1", "2"]
    assert bench.tcp.reading


async def test_a_bug_of_the_receiver_ends_its_connection() -> None:
    bench, receiver = await Bench().open(), Receiver()
    receiver.fails = True
    bench.stream.hand_over(receiver)
    with pytest.raises(RuntimeError):
        bench.come(text("1"))
    assert bench.tcp.aborted
