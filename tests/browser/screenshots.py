"""Takes pictures of every page of the console, on a `redrive up` with its demo jobs: `make screenshots`.

    python -m tests.browser.screenshots FOLDER

FOLDER gets `PAGE-WIDTH-THEME.webp`, each as high as its page. The overview, as high as a screen, goes into
docs/ for the README.
"""

import asyncio
import base64
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple, cast

import aiohttp
from playwright.async_api import Browser, Page, expect

from tests.browser.chromium import chromium
from tests.servers.processes import free_port

_DOCS: Final = Path(__file__).parents[2] / "docs"
_SIZES: Final = ((1440, 900), (1024, 768), (390, 844))
_THEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")
_LINK: Final = re.compile(r"(http\S+/console/)#token=(\S+)")
_QUALITY: Final = 70
_BULK: Final = {"filter": {"type": "email.send"}, "max": 100, "reason": "the mail server is back"}


@asynccontextmanager
async def _stack(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """Run `redrive up` until the block ends; gives the console's URL and a token."""
    ports = ["--port", str(free_port()), "--ops-port", str(free_port())]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REDRIVE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "redrive", "up", "--data-dir", str(folder), *ports,
        env={**environment, "REDRIVE_LIMIT_READ": "off", "REDRIVE_LIMIT_IP": "off"},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            if found := _LINK.search(line.decode()):
                yield found[1], found[2]
                return
        raise RuntimeError("redrive up ended before it printed its link")
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await process.communicate()


async def _views(url: str, token: str) -> dict[str, str]:
    """Retry some jobs, and name every page: its file's name, and its address behind `#`."""
    api = url.removesuffix("console/") + "api"
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}, raise_for_status=True) as session:
        async with session.get(f"{api}/jobs", params={"status": "failed", "limit": "1"}) as answer:
            (job,) = (await answer.json())["data"]
        async with session.post(f"{api}/jobs/retry", params={"dry_run": "false"}, json=_BULK) as answer:
            batch = (await answer.json())["data"]["batch_id"]
    return {
        "overview": "/", "failures": "/failures", "jobs": "/jobs", "job": f"/jobs/{job['id']}", "retries": "/retries",
        "batches": "/batches", "batch": f"/batches/{batch}", "dead": "/dead", "me": "/me",
    }  # fmt: skip


async def _take(page: Page, file: Path, *, whole: bool) -> None:
    """Write the page, or what is seen of it, as WebP, which Playwright itself does not."""
    devtools = await page.context.new_cdp_session(page)
    shape: dict[str, object] = {"format": "webp", "quality": _QUALITY, "captureBeyondViewport": whole}
    if whole:
        metrics = cast("dict[str, dict[str, float]]", await devtools.send("Page.getLayoutMetrics"))["cssContentSize"]
        shape["clip"] = {"x": 0, "y": 0, "width": metrics["width"], "height": metrics["height"], "scale": 1}
    taken = cast("dict[str, str]", await devtools.send("Page.captureScreenshot", shape))
    _write(file, base64.b64decode(taken["data"]))
    await devtools.detach()


def _write(file: Path, data: bytes) -> None:
    file.write_bytes(data)


class _Visit(NamedTuple):
    """What pictures are taken of, and where they go."""

    folder: Path
    url: str
    token: str
    views: dict[str, str]

    async def take(self, page: Page, theme: str) -> None:
        """Take every page as the window is."""
        width = page.viewport_size["width"] if page.viewport_size else 0

        def file(name: str) -> Path:
            return self.folder / f"{name}-{width}-{theme}.webp"

        await page.goto(self.url)
        await expect(page.get_by_role("button", name="Use this token")).to_be_visible()
        await _take(page, file("signin"), whole=True)
        await page.goto("about:blank")
        await page.goto(f"{self.url}#token={self.token}")
        await expect(page.locator("main h1")).to_have_text("Overview")
        for name, view in self.views.items():
            await _show(page, view)
            if await page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                raise RuntimeError(f"{name} is wider than {width} pixels")
            await _take(page, file(name), whole=True)
            if (name, width) == ("overview", 1440):
                await _take(page, _DOCS / f"console-{theme}.webp", whole=False)
        await _show(page, "/failures")
        await page.get_by_role("button", name=re.compile("^Retry")).first.click()
        await expect(page.locator("dialog .verdict")).to_contain_text("can go back")
        await _take(page, file("dialog"), whole=False)
        await page.goto(f"{self.url}element.html#job={self.views['job'].rpartition('/')[2]}")
        await page.get_by_label("token").fill(self.token)
        await page.get_by_role("button", name="Follow the job").click()
        await expect(page.get_by_text("Your report could not be made.", exact=True)).to_be_visible()
        await page.get_by_label("token").fill("")
        await _take(page, file("element"), whole=True)


async def _show(page: Page, view: str) -> None:
    await page.evaluate("view => { location.hash = view; }", view)
    await expect(page.locator(".loading")).to_have_count(0)


async def _visit(browser: Browser, visit: _Visit) -> None:
    """Take every page in both themes and all sizes."""
    for theme in _THEMES:
        for width, height in _SIZES:
            context = await browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
            )
            await visit.take(await context.new_page(), theme)
            await context.close()


async def _run(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="redrive-") as data:
        async with _stack(Path(data)) as (url, token), chromium() as browser:
            await _visit(browser, _Visit(folder, url, token, await _views(url, token)))


def main(folder: Path) -> None:
    """Take all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(_run(folder))
    print(f"{len(list(folder.glob('*.webp')))} pictures in {folder}; those of the README in {_DOCS}")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
