"""The page of development in a real browser, while what it stands on breaks."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, expect

from service.demo.agent import events
from tests.browser.visitor import FORMS, Visitor, look, open_page
from tests.harness.browser import SDK, launch
from tests.harness.server import Server

CLOSED = "#badge[data-state=closed]"

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launch() as browser:
        yield browser


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def no_tab_left(browser: Browser) -> AsyncIterator[None]:
    yield
    for context in browser.contexts:
        await context.close()


def spoken(question: str) -> str:
    """Return the text that the agent answers *question* with."""
    message = {"id": "q", "role": "user", "content": question}
    given = {"threadId": "t", "runId": "r", "messages": [message]}
    return "".join(
        event["delta"]
        for event in events(given)
        if event["type"] == "TEXT_MESSAGE_CONTENT"
    )


async def shifted(visitor: Visitor) -> float:
    found = await visitor.page.evaluate("shifts")
    return float(sum(each[0] for each in found))


async def test_a_conversation_that_two_people_watch(
    browser: Browser, server: Server
) -> None:
    ada = await open_page(browser, server, "Ada", "two")
    ben = await open_page(browser, server, "Ben", "two")
    await ada.badge("connected")
    await ben.badge("connected")
    await look(ada, "empty", forms=FORMS)
    for each in (ben, ada):
        present = each.page.locator("#present li")
        await expect(present).to_have_text(["Ada", "Ben"], timeout=15e3)

    # The keyboard alone: the message has the focus, and Enter sends.
    await ben.page.locator("#question").press_sequentially("Hm")
    await expect(ada.page.locator("#typing")).to_have_text("Ben is typing…")
    await expect(ben.page.locator("#typing")).to_have_text("")
    await ada.page.keyboard.type("Plan a weekend in Lisbon")
    await ada.page.keyboard.press("Enter")
    await ada.sees("Get weather")
    await ada.sees("Saturday is sunny")
    await look(ada, "streaming", forms=FORMS)
    await ben.sees("Saturday is sunny")
    await ada.ended()
    await ben.ended()
    for each in (ada, ben):
        assert await each.answer() == spoken("Plan a weekend in Lisbon")
    assert await ada.all_text() == await ben.all_text()
    steps = ada.page.locator(".step")
    assert [re.sub(r"\s+", " ", text) for text in await steps.all_inner_texts()] == [
        "Get weather done Asked city: Lisbon "
        "Got city: Lisbon; days: sunny at 21 °C, light rain at 18 °C",
        "Find places done Asked city: Lisbon; kind: sights; limit: 4 "
        "Got Miradouro da Graça, the tile museum, tram 28, Time Out Market",
    ]
    await look(ada, "answered", forms=FORMS)
    # The hint that somebody types ends by itself.
    await expect(ada.page.locator("#typing")).to_have_text("", timeout=10e3)
    assert await shifted(ben) < 0.01, await ben.page.evaluate("shifts")

    # A later viewer sees the same, compacted.
    late = await open_page(browser, server, "Chloé", "two")
    await late.ended()
    assert await late.all_text() == await ada.all_text()


async def test_the_connection_drops_in_mid_stream(
    browser: Browser, server: Server
) -> None:
    ada = await open_page(browser, server, "Dora", "dropped")
    await ada.badge("connected")
    await ada.ask("Count to 120")
    for seen in ("10 11 12", "40 41 42"):
        await ada.sees(seen)
        await ada.page.locator("#drop").click()
        await ada.badge("reconnecting")
        await look(ada, "reconnecting")
        said = await ada.badge("recovered")
        assert re.fullmatch(r"Recovered [1-9]\d* events?", said)
        await look(ada, "recovered")
    await ada.ended()
    assert await ada.answer() == " ".join(map(str, range(1, 121)))
    assert await ada.page.locator(".run").count() == 1


async def test_the_token_expires_in_mid_stream(
    browser: Browser, server: Server
) -> None:
    ada = await open_page(browser, server, "Emeka", "expired")
    await ada.badge("connected")
    await ada.ask("Count to 80")
    await ada.sees("10 11 12")
    await ada.page.locator("#expire").click()
    await ada.badge("reconnecting")
    await ada.badge("recovered")
    await ada.ended()
    assert await ada.answer() == " ".join(map(str, range(1, 81)))


async def test_a_token_is_refreshed_without_a_break(
    browser: Browser, server: Server
) -> None:
    async def faster(context: BrowserContext) -> None:
        await context.clock.install()

    ada = await open_page(browser, server, "Fatima", "refreshed", prepare=faster)
    await ada.badge("connected")
    await ada.ask("Count to 60")
    await ada.sees("10 11 12")
    # A ticket's connection lasts for ten minutes; the SDK asks before they are over.
    async with ada.page.expect_response("**/demo/ticket"):
        await ada.page.clock.fast_forward(590_000)
    await server.logged('"about": "refresh", "outcome": "admitted"')
    await ada.ended()
    assert await ada.answer() == " ".join(map(str, range(1, 61)))
    assert await ada.badge("connected") == "Connected"


async def test_the_agent_is_killed_and_asked_again(
    browser: Browser, server: Server
) -> None:
    ada = await open_page(browser, server, "Goro", "killed")
    await ada.badge("connected")
    await ada.ask("Count to 2000")
    await ada.sees("10 11 12")
    await ada.page.locator("#kill").click()
    await ada.ended("failed")
    await ada.sees("The agent was lost. What it had written is kept.")
    numbers = (await ada.answer()).split()
    assert numbers == [str(each) for each in range(1, len(numbers) + 1)]
    await look(ada, "lost", forms=FORMS)
    await ada.ask("Count to 3")
    await ada.ended()
    assert await ada.answer() == "1 2 3"


async def test_a_run_is_stopped_for_everybody(browser: Browser, server: Server) -> None:
    ada = await open_page(browser, server, "Hana", "stopped")
    ben = await open_page(browser, server, "Iris", "stopped")
    await ada.badge("connected")
    await ben.badge("connected")
    await ada.ask("Count to 2000")
    await ben.sees("10 11 12")
    await ben.page.locator("#stop").click()
    await ada.ended("stopped")
    await ben.ended("stopped")
    assert await ada.all_text() == await ben.all_text()
    await look(ben, "stopped")
    # The keyboard is where one goes on.
    await expect(ben.page.locator("#question")).to_be_focused()


async def test_two_tabs_of_one_person(browser: Browser, server: Server) -> None:
    first = await open_page(browser, server, "Jon", "tabs")
    await first.badge("connected")
    await first.ask("Count to 60")
    await first.sees("10 11 12")
    second = await open_page(browser, server, "Jon", "tabs", context=first.page.context)
    await second.sees("20 21 22")
    await first.ended()
    await second.ended()
    assert await second.all_text() == await first.all_text()
    assert await second.answer() == " ".join(map(str, range(1, 61)))
    present = second.page.locator("#present li")
    await expect(present).to_have_text(["Jon"], timeout=15e3)


async def test_the_fourth_tab_closes_the_least_active_which_says_so(
    browser: Browser, server: Server
) -> None:
    tabs: list[Visitor] = []
    for _ in range(4):
        context = tabs[0].page.context if tabs else None
        tab = await open_page(browser, server, "Kim", "fourth", context=context)
        await tab.badge("connected")
        tabs.append(tab)
    # Each looks now and then at who is here, so any may be the least active.
    closed = await one_closed(tabs[:3])
    assert await closed.badge("closed") == "Closed"
    await expect(closed.page.locator("#notice-text")).to_contain_text(
        "this one was the least active"
    )
    await look(closed, "evicted", forms=FORMS)
    others = [tab for tab in tabs if tab is not closed]
    for tab in others:
        assert await tab.badge("connected") == "Connected"
    await closed.page.locator("#notice-action").click()
    await closed.badge("connected")
    await one_closed(others)
    await closed.ask("Count to 3")
    await closed.ended()


async def one_closed(tabs: list[Visitor]) -> Visitor:
    """Wait until the server has closed one of *tabs*."""
    waiting = {
        asyncio.create_task(
            tab.page.wait_for_selector("#badge[data-state=closed]")
        ): tab
        for tab in tabs
    }
    done, left = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for each in left:
        each.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    (one,) = done
    await one
    return waiting[one]


async def test_the_server_is_killed_in_mid_stream(
    browser: Browser, make_server: Callable[..., Server]
) -> None:
    server = await make_server().start()
    ada = await open_page(browser, server, "Ada", "restarted")
    await ada.badge("connected")
    await ada.ask("Count to 2000")
    await ada.sees("10 11 12")
    server.kill9()
    await ada.badge("reconnecting")
    await look(ada, "server-gone")
    await server.start()
    # The run that it relayed has ended; nothing that was seen is lost.
    await ada.ended("failed")
    await ada.sees("The agent was lost")
    numbers = (await ada.answer()).split()
    assert numbers == [str(each) for each in range(1, len(numbers) + 1)]
    assert len(numbers) >= 12
    await ada.ask("Count to 3")
    await ada.ended()
    assert await ada.answer() == "1 2 3"
    ada.errors.clear()


async def test_offline_for_a_minute(browser: Browser, server: Server) -> None:
    """The minute passes in the browser alone: its timers are wound forward."""

    async def faster(context: BrowserContext) -> None:
        await context.clock.install()

    ada = await open_page(browser, server, "Lena", "offline", prepare=faster)
    await ada.badge("connected")
    await ada.ask("Count to 150")
    await ada.sees("10 11 12")
    await ada.page.context.set_offline(True)
    await ada.page.locator("#drop").click()
    await ada.badge("reconnecting")
    for _ in range(12):
        await ada.page.clock.fast_forward(5_000)
    await ada.badge("reconnecting")
    await look(ada, "offline")
    await ada.page.context.set_offline(False)
    await ada.page.clock.fast_forward(5_000)
    await ada.badge("recovered")
    await ada.ended()
    assert await ada.answer() == " ".join(map(str, range(1, 151)))


async def test_without_the_sdk_events_come_over_sse(
    browser: Browser, server: Server
) -> None:
    async def without(context: BrowserContext) -> None:
        await context.route("**/centrifuge.js", lambda route: route.abort())

    ada = await open_page(browser, server, "Mia", "sse", prepare=without)
    await ada.badge("connected")
    await expect(ada.page.locator("#notice-text")).to_contain_text("SDK could not")
    ada.errors.clear()
    await ada.ask("Count to 40")
    await ada.sees("10 11 12")
    await look(ada, "without-sdk", forms=("phone-light",))
    await ada.ended()
    await expect(ada.page.locator("#notice-text")).to_contain_text("SDK could not")
    assert await ada.answer() == " ".join(map(str, range(1, 41)))


async def test_the_sdk_is_served_from_where_npm_has_put_it(
    browser: Browser, make_server: Callable[..., Server], tmp_path: Path
) -> None:
    own = make_server()
    (tmp_path / "server0" / "node_modules").symlink_to(SDK.parents[2])
    await own.start()

    async def offline(context: BrowserContext) -> None:
        await context.unroute_all()
        await context.route(
            lambda url: url.startswith("https://"), lambda route: route.abort()
        )

    ada = await open_page(browser, own, "Ada", "local", prepare=offline)
    await ada.badge("connected")
    await expect(ada.page.locator("#notice")).to_be_hidden()
    assert await ada.page.evaluate("typeof Centrifuge") == "function"


async def test_an_address_that_names_nobody_or_nothing(
    browser: Browser, server: Server
) -> None:
    # An escape that is not valid, and users that get no ticket.
    for user, thread in (("", "%E0%A4"), ("%00%0A", "x"), ("y" * 99, "y")):
        visitor = await open_page(browser, server, user, thread)
        await visitor.badge("connected")
        assert visitor.errors == []
    await expect(visitor.page.locator("#present li")).to_have_text("y" * 64)
    await look(visitor, "long-name", forms=("desktop-light", "phone-light"))


async def test_a_conversation_that_cannot_be_shown_leads_to_a_new_one(
    browser: Browser, server: Server
) -> None:
    visitor = await open_page(browser, server, "Ada", "Caf%C3%A9")  # no channel's name
    await visitor.badge("closed")
    await expect(visitor.page.locator("#notice-text")).to_contain_text(
        "cannot be shown"
    )
    await visitor.page.locator("#notice-action").click()
    await visitor.badge("connected")
    assert re.search(r"#[0-9a-f]{8}$", visitor.page.url)
