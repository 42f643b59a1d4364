"""Visitors of the page of development, and what every state of it must be like."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.harness.browser import with_cdn
from tests.harness.process import ROOT, TOOLS
from tests.harness.server import Server
from tests.harness.tools import node

__all__ = ["FORMS", "Visitor", "look", "open_page"]

SHOTS = Path(os.environ.get("STEADWIRE_SCREENSHOTS", ROOT / ".screenshots"))
AXE = TOOLS / "node_modules" / "axe-core" / "axe.min.js"
FORMS = {
    "desktop-light": {"width": 1000, "height": 760, "scheme": "light"},
    "desktop-dark": {"width": 1000, "height": 760, "scheme": "dark"},
    "phone-light": {"width": 375, "height": 720, "scheme": "light"},
    "phone-dark": {"width": 375, "height": 720, "scheme": "dark"},
}

_SHIFTS = """
globalThis.shifts = []
new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
        if (!entry.hadRecentInput) {
            const nodes = entry.sources.map(({ node }) => node?.id || node?.className)
            shifts.push([entry.value, ...nodes])
        }
    }
}).observe({ type: 'layout-shift', buffered: true })
"""

# Parts that must not lie on each other, and must lie within the window.
_BOXES = """
() => ['header', 'main', 'footer', '#present', '#badge', '#typing', '#notice',
       '#trouble', '#drop', '#expire', '#kill', '#question', '#send', '#stop',
].flatMap((name) => {
    const element = document.querySelector(name)
    const { left, top, right, bottom } = element.getBoundingClientRect()
    return element.checkVisibility() ? [[name, left, top, right, bottom]] : []
})
"""

_PARTS = {
    "header": {"#present", "#badge"},
    "footer": {"#typing", "#notice", "#trouble", "#drop", "#expire", "#kill"}
    | {"#question", "#send", "#stop"},
    "#trouble": {"#drop", "#expire", "#kill"},
}


_CUT_OFF = """
() => ['#present', '#badge', '#typing', '#trouble', '#composer'].filter((name) => {
    const { scrollWidth, clientWidth } = document.querySelector(name)
    return scrollWidth > clientWidth
})
"""

_TO_THE_END = """
() => {
    const { scrollHeight, scrollTop, clientHeight } =
        document.querySelector('#conversation')
    return scrollHeight - scrollTop - clientHeight
}
"""


class Visitor:
    """One tab.

    Attributes:
        page: Of Playwright.
        errors: What its console complained of.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._said)

    def _said(self, message: Any) -> None:
        # That a socket could not be opened is what some tests are about.
        if message.type == "error" and "net::ERR_" not in message.text:
            self.errors.append(message.text)

    async def ask(self, text: str) -> None:
        await self.page.locator("#question").fill(text)
        await self.page.keyboard.press("Enter")

    async def sees(self, text: str) -> None:
        """Wait until the last run has *text* in it."""
        await expect(self.page.locator(".run").last).to_contain_text(text, timeout=30e3)

    async def ended(self, state: str = "finished") -> None:
        """Wait until the last run has ended so."""
        last = self.page.locator(".run").last
        await expect(last).to_have_attribute("data-state", state, timeout=60e3)

    async def answer(self) -> str:
        """Return the last answer's text as it is in the document."""
        text = self.page.locator(".run").last.locator(".answer .text")
        return str(await text.last.text_content())

    async def all_text(self) -> str:
        return str(await self.page.locator("#messages").inner_text())

    async def badge(self, state: str) -> str:
        """Wait for a state of the badge; return what it says then."""
        badge = self.page.locator("#badge")
        await expect(badge).to_have_attribute("data-state", state, timeout=30e3)
        return str(await self.page.locator("#badge-text").inner_text())


async def open_page(
    browser: Browser,
    server: Server,
    user: str,
    thread: str,
    *,
    form: str = "desktop-light",
    context: BrowserContext | None = None,
    prepare: Callable[[BrowserContext], Any] | None = None,
) -> Visitor:
    """Open the page in a new tab, of *context* or of a new one, and connect."""
    if context is None:
        size = FORMS[form]
        context = await browser.new_context(
            viewport={"width": size["width"], "height": size["height"]},
            color_scheme=size["scheme"],
            reduced_motion="reduce",
        )
        await with_cdn(context)
        if prepare is not None:
            await prepare(context)
    page = await context.new_page()
    node("axe-core")
    # Not by a script of the page, which its policy would refuse.
    await page.add_init_script(path=AXE)
    await page.add_init_script(_SHIFTS)
    visitor = Visitor(page)
    await page.goto(f"http://127.0.0.1:{server.port}/?user={user}#{thread}")
    return visitor


async def look(
    visitor: Visitor, name: str, *, forms: Iterable[str] = ("desktop-light",)
) -> None:
    """Take pictures of a state, and check what holds in every one."""
    page = visitor.page
    SHOTS.mkdir(exist_ok=True)
    follows = await page.evaluate(_TO_THE_END) < 2
    for form in forms:
        size = FORMS[form]
        await page.emulate_media(color_scheme=size["scheme"])
        await page.set_viewport_size({"width": size["width"], "height": size["height"]})
        if follows:  # however little room there is, the newest words are in sight
            await page.wait_for_function(f"() => ({_TO_THE_END})() < 2")
        await page.screenshot(path=SHOTS / f"{name}-{form}.png")
        _lie_apart(await page.evaluate(_BOXES), size["width"], size["height"])
        overflow = "document.documentElement.scrollWidth - innerWidth"
        assert await page.evaluate(overflow) <= 0, (name, form)
        assert await page.evaluate(_CUT_OFF) == [], (name, form)
        await _accessible(page, f"{name} {form}")
    shown = await page.locator("body").inner_text()
    for piece in ('{"', '":', "[object", "undefined", "null", "NaN"):
        assert piece not in shown, (name, shown)
    assert visitor.errors == [], name


def _lie_apart(boxes: list[list[Any]], width: int, height: int) -> None:
    for index, (name, left, top, right, bottom) in enumerate(boxes):
        assert left >= 0 and right <= width, (name, left, right)
        assert top >= 0 and bottom <= height, (name, top, bottom)
        for other, *box in boxes[index + 1 :]:
            if other in _PARTS.get(name, ()):
                continue
            apart = (
                box[0] >= right or box[2] <= left or box[1] >= bottom or box[3] <= top
            )
            assert apart, f"{name} and {other} lie on each other"


async def _accessible(page: Page, name: str) -> None:
    found = await page.evaluate("async () => (await axe.run()).violations")
    serious = [
        (each["id"], [part["html"] for part in each["nodes"]])
        for each in found
        if each["impact"] in ("serious", "critical", "moderate")
    ]
    assert not serious, (name, serious)
