"""Agents that push their events: numbers, cuts, leases, backpressure, cancels."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.harness.agents import Event, said, viewing
from tests.harness.api import Api
from tests.harness.fixtures import backends, server_with
from tests.harness.server import Server
from tests.harness.sockets import TcpClient

LEASE = 2.0  # s

backend = backends("sqlite", slow=("dynamodb",))
server = server_with({"STEADWIRE_RUNS_LEASE": "20"})
brief = server_with({"STEADWIRE_RUNS_LEASE": str(LEASE)})
NDJSON = "application/x-ndjson"
WORDS = [f"word{n} " for n in range(20)]


class Pusher:
    """An agent that pushes to one run."""

    def __init__(self, server: Server, thread: str, run: str = "r1") -> None:
        self.url = f"http://127.0.0.1:{server.port}/api/runs/{thread}/{run}"
        self.headers = {"X-API-Key": server.key, "Content-Type": NDJSON}

    async def push(self, body: Any, query: str = "", **headers: str) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False, timeout=20.0) as client:
            return await client.post(
                f"{self.url}/events{query}",
                content=body,
                headers={**self.headers, **headers},
            )

    async def control(self, query: str = "") -> dict[str, Any]:
        async with httpx.AsyncClient(trust_env=False, timeout=40.0) as client:
            url = f"{self.url}/control{query}"
            answer = await client.get(url, headers=self.headers)
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            return found


def lines(events: list[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(event)}\n" for event in events).encode()


async def log_of(server: Server, thread: str, last: str = "") -> list[Event]:
    async with viewing(server, f"/agui/threads/{thread}/events?after=0") as view:
        return await view.until(last or "RUN_FINISHED")


OVER = {"live": False, "cancelled": False, "outcome": "finished"}
LIVE = {"live": True, "cancelled": False, "outcome": ""}


async def test_a_whole_run_in_one_request(server: Server, thread: str) -> None:
    events = said("r1", WORDS, thread)
    answer = await Pusher(server, thread).push(lines(events))
    assert (answer.status_code, answer.json()) == (200, {**OVER, "next": 25})
    assert [e.fields for e in await log_of(server, thread)] == events


async def test_server_sent_events_with_numbers(server: Server, thread: str) -> None:
    events = said("r1", WORDS, thread)
    numbered = [f"id: {n}\ndata: {json.dumps(e)}\n\n" for n, e in enumerate(events, 1)]
    pusher, kind = Pusher(server, thread), {"Content-Type": "text/event-stream"}
    answer = await pusher.push("".join(numbered[:10]).encode(), **kind)
    assert answer.json() == {**LIVE, "next": 11}
    body = ":\n\n" + "".join(numbered[5:])
    answer = await pusher.push(body.encode(), **kind)
    assert answer.json() == {**OVER, "next": 25}
    assert [e.fields for e in await log_of(server, thread)] == events


@pytest.mark.requirement("L18")
async def test_cut_after_each_event_and_repeated_nothing_is_lost_or_doubled(
    server: Server, thread: str
) -> None:
    """Each request has what the answer before said, and two events too many."""
    events = said("r1", WORDS, thread)
    pusher, number = Pusher(server, thread), 1
    while number <= len(events):
        first = max(1, number - 2)
        piece = events[first - 1 : number]
        # The last line has no end: that of a cut is not taken for an event.
        answer = await pusher.push(lines(piece)[:-1], f"?from={first}")
        assert answer.status_code == 200
        assert answer.json()["next"] == number + 1
        number = answer.json()["next"]
    assert [e.fields for e in await log_of(server, thread)] == events
    again = await pusher.push(lines(events))
    assert again.json() == {**OVER, "next": 25}
    assert len(await log_of(server, thread)) == len(events)


async def test_a_cut_within_a_line_stores_whole_events_alone(
    server: Server, thread: str
) -> None:
    events = said("r1", WORDS, thread)
    whole, half = lines(events[:5]), lines(events[5:6])[:-10]
    sent = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield whole + half
        sent.set()
        await asyncio.sleep(60)

    pusher = Pusher(server, thread)
    pushing = asyncio.create_task(pusher.push(body()))
    await sent.wait()
    async with viewing(server, f"/agui/threads/{thread}/events?after=0") as view:
        for _ in range(5):
            assert await view.next()
    pushing.cancel()
    await asyncio.gather(pushing, return_exceptions=True)
    assert (await pusher.control())["next"] == 6
    answer = await pusher.push(lines(events[5:]), "?from=6")
    assert answer.json() == {**OVER, "next": 25}
    assert [e.fields for e in await log_of(server, thread)] == events


async def test_a_newer_request_takes_over_from_one_that_hangs(
    server: Server, thread: str
) -> None:
    events = said("r1", WORDS, thread)
    sent = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield lines(events[:5])
        sent.set()
        await asyncio.sleep(60)

    pusher = Pusher(server, thread)
    hanging = asyncio.create_task(pusher.push(body()))
    await sent.wait()
    async with viewing(server, f"/agui/threads/{thread}/events?after=0") as view:
        for _ in range(5):  # until all of that is stored
            assert await view.next()
    answer = await pusher.push(lines(events[2:10]), "?from=3")
    assert answer.json() == {**LIVE, "next": 11}
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)
    answer = await pusher.push(lines(events[10:]), "?from=11")
    assert answer.json() == {**OVER, "next": 25}
    assert [e.fields for e in await log_of(server, thread)] == events


@pytest.mark.requirement("R44")
async def test_silence_beyond_the_lease_ends_the_run_once(
    brief: Server, thread: str
) -> None:
    events = said("r1", WORDS, thread)
    pusher = Pusher(brief, thread)
    await pusher.push(lines(events[:5]))
    found = await log_of(brief, thread, "RUN_ERROR")
    assert found[-1].fields["code"] == "agent_lost" and len(found) == 6
    lost = {"live": False, "cancelled": False, "outcome": "agent_lost", "next": 7}
    assert await pusher.control() == lost
    answer = await pusher.push(lines(events[5:]), "?from=6")
    assert answer.json() == lost
    assert len(await log_of(brief, thread, "RUN_ERROR")) == 6


async def test_empty_lines_keep_a_run_alive(brief: Server, thread: str) -> None:
    events = said("r1", WORDS, thread)

    async def body() -> AsyncIterator[bytes]:
        yield lines(events[:5])
        for _ in range(6):
            await asyncio.sleep(LEASE / 4)
            yield b"\n"
        yield lines(events[5:])

    answer = await Pusher(brief, thread).push(body())
    assert answer.json() == {**OVER, "next": 25}


@pytest.mark.parametrize("where", ["mid-stream", "next request", "control"])
async def test_the_agent_learns_of_a_cancel(
    server: Server, api: Api, thread: str, where: str
) -> None:
    events = said("r1", WORDS, thread)
    pusher = Pusher(server, thread)
    cancelled = {"live": False, "cancelled": True, "outcome": "cancelled", "next": 8}

    async def cancel() -> None:
        async with viewing(server, f"/agui/threads/{thread}/events?after=0") as view:
            for _ in range(5):
                await view.next()
        path = f"/agui/threads/{thread}/runs/r1/cancel"
        answer = await api.request("POST", path)
        assert answer.json == {"cancelled": True}

    if where == "mid-stream":
        # By a client that reads while it sends; one that does not sees the end of the
        # connection, and asks.
        head = (
            f"POST /api/runs/{thread}/r1/events HTTP/1.1\r\nHost: x\r\n"
            f"X-API-Key: {server.key}\r\nContent-Type: {NDJSON}\r\n"
            "Content-Length: 100000\r\n\r\n"
        )
        with contextlib.closing(await TcpClient.connect(server.port)) as tcp:
            await tcp.send(head.encode() + lines(events[:5]))
            await cancel()
            answer = (await tcp.read_until(b"\r\n\r\n")).lower()
            size = int(answer.partition(b"content-length: ")[2].split(b"\r\n")[0])
            assert json.loads(await tcp.read_exactly(size)) == cancelled
            assert b"connection: close" in answer
        return
    await pusher.push(lines(events[:5]))
    if where == "control":
        asking = asyncio.create_task(pusher.control("?wait=20"))
        await cancel()
        assert await asking == cancelled
    else:
        await cancel()
        answer = await pusher.push(lines(events[5:]), "?from=6")
        assert answer.json() == cancelled


@pytest.mark.parametrize(
    ("sent", "query", "status", "code", "following"),
    [
        (slice(1, 5), "", 409, "wrong_order", 1),
        (slice(3, 5), "?from=4", 409, "gap", 1),
        (slice(0, 0), "", 200, "", 1),
    ],
)
async def test_a_run_begins_with_its_start(
    server: Server,
    thread: str,
    sent: slice,
    query: str,
    status: int,
    code: str,
    following: int,
) -> None:
    body = lines(said("r1", WORDS, thread)[sent])
    answer = await Pusher(server, thread).push(body, query)
    assert answer.status_code == status
    found = answer.json()
    assert found.get("error", {}).get("code", "") == code
    assert found["next"] == following and found["live"] is False


@pytest.mark.requirement("R41")
@pytest.mark.parametrize(
    ("wrong", "status", "code"),
    [
        (b"{", 400, "invalid_event"),
        (b'{"type":"TOOL_USED"}', 400, "invalid_event"),
        (b'{"type":"TEXT_MESSAGE_END","messageId":"x"}', 409, "wrong_order"),
        (b'{"type":"RUN_STARTED","threadId":"t","runId":"r1"}', 409, "wrong_order"),
        (b'"' + b"x" * (256 * 1024) + b'"', 413, "too_large"),
    ],
)
async def test_what_is_refused_is_not_stored_and_the_run_goes_on(
    server: Server, thread: str, wrong: bytes, status: int, code: str
) -> None:
    events = said("r1", WORDS, thread)
    pusher = Pusher(server, thread)
    wrong = wrong.replace(b'"t"', json.dumps(thread).encode())
    answer = await pusher.push(lines(events[:5]) + wrong + b"\n" + lines(events[5:]))
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["next"] == 6 and answer.json()["live"] is True
    answer = await pusher.push(lines(events[5:]), "?from=6")
    assert answer.json() == {**OVER, "next": 25}
    assert [e.fields for e in await log_of(server, thread)] == events


async def test_it_is_authorised_as_the_server_api(server: Server, thread: str) -> None:
    pusher = Pusher(server, thread)
    body = lines(said("r1", WORDS, thread))
    for key in ("", "wrong"):
        answer = await pusher.push(body, **{"X-API-Key": key})
        assert answer.status_code == 401
    answer = await pusher.push(body, **{"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "media_type")
    assert (await pusher.control())["next"] == 1


@pytest.mark.requirement("R44")
async def test_a_thousand_events_a_second_keep_their_order(
    server: Server, thread: str
) -> None:
    words = [f"{n} " for n in range(3000)]
    events = said("r1", words, thread)

    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(events), 50):
            yield lines(events[start : start + 50])

    async with viewing(server, f"/agui/threads/{thread}/events") as view:
        answer = await Pusher(server, thread).push(body())
        assert answer.json() == {**OVER, "next": len(events) + 1}
        found = await view.until("RUN_FINISHED")
    assert [event.fields for event in found] == events


@pytest.mark.requirement("R44")
async def test_after_a_crash_of_the_server_the_agent_goes_on(
    make_server: Any, thread: str
) -> None:
    own = await make_server({"STEADWIRE_RUNS_LEASE": "20"}).start()
    events = said("r1", WORDS, thread)
    pusher = Pusher(own, thread)
    assert (await pusher.push(lines(events[:10]))).json()["next"] == 11
    await own.restart()
    answer = await pusher.push(lines(events[8:]), "?from=9")
    assert answer.json() == {**OVER, "next": 25}
    assert [e.fields for e in await log_of(own, thread)] == events


@pytest.mark.slow
@pytest.mark.requirement("R44")
async def test_after_a_shutdown_of_the_server_the_agent_goes_on(
    make_server: Any, thread: str
) -> None:
    own = await make_server({"STEADWIRE_RUNS_LEASE": "60"}).start()
    events = said("r1", WORDS, thread)
    pusher, gate = Pusher(own, thread), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield lines(events[:10])
        await gate.wait()

    pushing = asyncio.create_task(pusher.push(body()))
    while (await pusher.control())["next"] < 11:
        await asyncio.sleep(0.05)
    assert await own.terminate() == 0
    gate.set()
    with contextlib.suppress(httpx.HTTPError):  # cut off, or told that it lives
        await pushing
    await own.start()
    answer = await pusher.push(lines(events[8:]), "?from=9")
    assert answer.json() == {**OVER, "next": 25}
    assert [e.fields for e in await log_of(own, thread)] == events


async def test_of_two_that_start_a_run_at_once_one_starts_it(
    server: Server, thread: str
) -> None:
    events = said("r1", WORDS, thread)
    pusher = Pusher(server, thread)
    answers = await asyncio.gather(*[pusher.push(lines(events)) for _ in range(4)])
    found = [answer.json() for answer in answers]
    assert {answer.status_code for answer in answers} == {200}
    # One that a newer one took over from says what was there when it ended.
    assert {**OVER, "next": 25} in found
    assert [e.fields for e in await log_of(server, thread)] == events
