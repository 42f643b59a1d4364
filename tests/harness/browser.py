"""The system's Chromium, driven by Playwright."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, BrowserContext, Route, async_playwright

from tests.harness.process import TOOLS
from tests.harness.tools import chromium, node

__all__ = ["CDN", "SDK", "launch", "with_cdn"]

SDK = TOOLS / "node_modules" / "centrifuge" / "dist" / "centrifuge.js"
CDN = "https://cdn.jsdelivr.net/npm/centrifuge@5.8.0/dist/centrifuge.js"

_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
)


@asynccontextmanager
async def launch() -> AsyncIterator[Browser]:
    """Run a browser with a profile of its own."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium(), args=list(_ARGUMENTS)
        )
        try:
            yield browser
        finally:
            await browser.close()


async def with_cdn(context: BrowserContext) -> None:
    """Serve what the CDN serves from the npm package, and nothing else from outside."""
    node("centrifuge")

    async def answer(route: Route) -> None:
        if route.request.url == CDN:
            headers = {"Access-Control-Allow-Origin": "*"}
            kind = "text/javascript"
            await route.fulfill(path=Path(SDK), headers=headers, content_type=kind)
        else:
            await route.abort()

    await context.route(lambda url: url.startswith("https://"), answer)
