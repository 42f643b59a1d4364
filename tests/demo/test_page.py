"""The page of development: where it is served, and what it gives to whom."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from tests.harness.process import ROOT
from tests.harness.server import Server
from tests.harness.tokens import SECRET


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30.0) as client:
        yield client


async def test_its_address_is_the_first_that_is_printed(server: Server) -> None:
    printed = re.findall(r"\S+://\S+", server.output())
    assert printed[0] == f"http://127.0.0.1:{server.port}/"


async def test_its_files_and_their_policy(http: httpx.AsyncClient) -> None:
    page = await http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    # Nothing in it is inline: the policy would refuse that.
    assert not re.search(r"<style|<script>|\sstyle=|\son\w+=", page.text)
    local = [f for f in re.findall(r'(?:src|href)="(/[^"]+)"', page.text)]
    assert sorted(local) == ["/demo/chat.js", "/demo/icon.svg", "/demo/style.css"]
    for path in (*local, "/demo/conversation.js", "/demo/threads.js"):
        answer = await http.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"] == policy
    threads = await http.get("/demo/threads.js")
    assert threads.text == (ROOT / "clients/agui/threads.js").read_text("utf-8")
    for path in ("/demo/", "/demo/index.html", "/demo/page.py", "/demo/..%2fx"):
        assert (await http.get(path)).status_code == 404


async def test_a_ticket_is_good_for_one_request(
    http: httpx.AsyncClient, server: Server
) -> None:
    given = (await http.post("/demo/ticket", json={"user": "Ada"})).json()
    assert given.keys() == {"ticket", "id"}
    client = await server.raw(connected=False)
    await client.send({"id": 1, "connect": {"token": given["ticket"]}})
    assert (await client.message())["connect"]["expires"] is True
    again = await server.raw(connected=False)
    await again.send({"id": 1, "connect": {"token": given["ticket"]}})
    assert (await again.message())["error"]["code"] == 109

    # "Expire my token".
    answer = await http.post("/demo/expire", json={"id": given["id"]})
    assert answer.status_code == 204
    assert (await client.closed()).code == 3005


@pytest.mark.parametrize("path", ["ticket", "expire", "kill"])
async def test_pages_of_other_origins_are_refused(
    http: httpx.AsyncClient, path: str
) -> None:
    body = {"user": "Ada", "id": "x"}
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
        headers = {"Origin": origin}
        answer = await http.post(f"/demo/{path}", json=body, headers=headers)
        assert answer.status_code == 403, origin
    # A name that was rebound to this machine.
    headers = {"Origin": "http://evil.example", "Host": "evil.example"}
    answer = await http.post(f"/demo/{path}", json=body, headers=headers)
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("ticket", b"{}", 400),
        ("ticket", b'{"user": ""}', 400),
        ("ticket", b'{"user": 7}', 400),
        ("ticket", b'{"user": "a\\u0000"}', 400),
        ("ticket", b'["user"]', 400),
        ("ticket", b"{", 400),
        ("ticket", b'{"user": "%s"}' % (b"a" * 65), 400),
        ("ticket", b'{"user": "%s"}' % (b"a" * 2000), 413),
        ("expire", b'{"id": ""}', 400),
        ("expire", b'{"id": "\\u00e9"}', 400),
    ],
)
async def test_what_makes_no_sense_is_refused(
    http: httpx.AsyncClient, path: str, body: bytes, status: int
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await http.post(f"/demo/{path}", content=body, headers=headers)
    assert answer.status_code == status


@pytest.mark.parametrize(
    "settings",
    [
        {"STEADWIRE_ENVIRONMENT": "production"},
        {"STEADWIRE_ENVIRONMENT": "development"},
    ],
    ids=["production", "with keys"],
)
async def test_it_is_not_there_where_tokens_have_keys(
    make_server: Callable[..., Server], settings: dict[str, str]
) -> None:
    secret = {"STEADWIRE_TOKEN_HMAC_SECRET_KEY": SECRET, "STEADWIRE_API_KEY": "k" * 40}
    server = await make_server({**secret, **settings}).start()
    url = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30.0) as http:
        assert (await http.get("/")).status_code == 404
        answer = await http.post("/demo/ticket", json={"user": "Ada"})
        assert answer.status_code == 404
    assert "page" not in server.output().split("WebSocket")[0].splitlines()[-1]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
async def test_who_loads_it_does_not_wait_for_imports_at_the_first_run(
    http: httpx.AsyncClient, server: Server
) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps")
    await http.get("/")
    async with asyncio.timeout(30.0):
        while "pydantic_core" not in maps.read_text():
            await asyncio.sleep(0.02)
