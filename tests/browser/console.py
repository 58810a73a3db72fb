"""The console as a person meets it, and what a browser has against it."""

import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final, Self

from playwright.async_api import Browser, ConsoleMessage, Page, Route, expect

from tests.api_server import Api
from tests.tokens import token

EVERYTHING: Final = "jobs:read jobs:payload jobs:retry jobs:retry:bulk jobs:retry:extend"
PAGES: Final = ("batches", "bulk", "failures", "job", "jobs", "me", "overview", "retries", "signin")
"""The modules that are read ahead, and read others."""
_READ: Final = """modules => {
  const read = new Set(performance.getEntriesByType("resource").map(entry => entry.name.split("/").pop()));
  return modules.every(module => read.has(`${module}.mjs`));
}"""
_WATCH: Final = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`);
});
"""


async def see(page: Page, state: str) -> None:
    """Let the tab be `hidden`, or `visible`; a browser without windows does neither by itself."""
    await page.evaluate(
        "to => { Object.defineProperty(document, 'visibilityState', {get: () => to, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange')); }",
        state,
    )


async def hold(page: Page, path: str) -> list[Route]:
    """Hold each request for this path; what is held is in the list."""
    held: list[Route] = []

    def keep(route: Route) -> None:  # Playwright marks its listeners, which a built-in method does not allow
        held.append(route)

    await page.route(f"**/{path}", keep)
    return held


async def until_read(page: Page, modules: Collection[str]) -> None:
    """Wait until the console has read these modules."""
    await page.wait_for_function(_READ, arg=list(modules))


class Console:
    """One window. `wrong` gathers page errors, and errors on the browser's console but its own line for a status."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.wrong: list[str] = []
        page.on("pageerror", lambda error: self.wrong.append(f"page error: {error}"))
        page.on("console", self._note)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.wrong.append(f"console: {message.text}")

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, browser: Browser, api: Api, *, theme: str = "light", width: int = 1440, height: int = 900
    ) -> AsyncIterator[Self]:
        context = await browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
            reduced_motion="reduce",
        )
        try:
            await context.add_init_script(_WATCH)
            console = cls(await context.new_page(), f"http://127.0.0.1:{api.port}/console/")
            yield console
            await console.check()
        finally:
            await context.close()

    async def check(self) -> None:
        """Nothing went wrong so far: no page error, and nothing that the content security policy has blocked."""
        assert self.wrong == []
        assert await self.page.evaluate("window.violations") == []

    async def sign_in(self, *, scope: str = EVERYTHING, view: str = "", ttl_s: int = 3600) -> None:
        """Open a link that is signed in, as `redrive up` prints it, and go to a view."""
        await self.page.goto(f"{self.url}#token={token(scope=scope, exp=int(time.time()) + ttl_s)}")
        await expect(self.page.locator("main h1")).to_have_text("Overview")
        if view:
            await self.go(view)

    async def open_signed_in(self, view: str) -> None:
        """Open a view with a token that was kept for this tab."""
        await self.page.add_init_script(f"sessionStorage.setItem('redrive.token', '{token(scope=EVERYTHING)}')")
        await self.page.goto(f"{self.url}{view}")

    async def go(self, view: str) -> None:
        """Go to a view, and wait until it has read what it shows."""
        await self.page.evaluate("view => { location.hash = view; }", view)
        await expect(self.page.locator(".loading")).to_have_count(0)
