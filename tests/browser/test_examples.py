"""The README's page, in a real browser."""

from __future__ import annotations

import functools
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.harness.browser import CDN, SDK, launch, with_cdn
from tests.harness.process import ROOT
from tests.harness.server import Server

pytestmark = pytest.mark.slow


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty folder of a newcomer's."""
    made = tmp_path / "page"
    made.mkdir()
    return made


@pytest.fixture
def origin(folder: Path) -> Iterator[str]:
    """Serve the folder as `python3 -m http.server` does, on a port of its own."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def page(server: Server, *, online: bool) -> str:
    """Return the README's page for this server."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"^```html\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    html = str(found).replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    assert CDN in html
    if online:
        return html
    offline = "node_modules/centrifuge/dist/centrifuge.js"
    assert f'src="{offline}"' in text
    return html.replace(CDN, offline)


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
async def test_the_page_shows_what_was_published_before_and_after(
    server: Server, folder: Path, origin: str, online: bool
) -> None:
    (folder / "chat.html").write_text(page(server, online=online))
    if not online:
        (folder / "node_modules").symlink_to(SDK.parents[2])
    async with server.api() as api, launch() as browser:
        context = await browser.new_context()
        await with_cdn(context)
        before = await api.publish("chat", {"text": "before"})
        shown = await context.new_page()
        await shown.goto(f"{origin}/chat.html")
        items = shown.locator("#messages li")
        await items.last.wait_for()
        after = await api.publish("chat", {"text": "<b>after</b>"})
        await shown.get_by_text(f"{after} <b>after</b>").wait_for()
        assert (await items.all_inner_texts())[-2:] == [
            f"{before} before",
            f"{after} <b>after</b>",
        ]


async def test_a_page_of_another_origin_is_told_why_it_is_refused(
    server: Server, folder: Path
) -> None:
    """As the README says: in the browser's console, and in the server's log."""
    (folder / "chat.html").write_text(page(server, online=True))
    async with launch() as browser:
        context = await browser.new_context()
        await with_cdn(context)
        shown = await context.new_page()
        async with shown.expect_event(
            "console", lambda message: "WebSocket connection" in message.text
        ) as said:
            await shown.goto((folder / "chat.html").as_uri())
        message = await said.value
        assert message.type == "error"
        assert "403" in message.text
    await server.logged("add 'null' to server.origins")


async def test_the_page_of_the_client_for_agents(
    server: Server, folder: Path, origin: str
) -> None:
    """As clients/agui/README.md says, beside a copy of that folder."""
    shutil.copytree(ROOT / "clients" / "agui", folder / "agui")
    text = (ROOT / "clients" / "agui" / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"^```html\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    html = str(found).replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    (folder / "chat.html").write_text(html)
    async with launch() as browser:
        shown = await (await browser.new_context()).new_page()
        await shown.goto(f"{origin}/chat.html")
        await shown.get_by_text("the early train to the airport.").wait_for()
