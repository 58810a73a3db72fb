"""Chromium, as the machine has it, without its background traffic."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from playwright.async_api import Browser, async_playwright

_FLAGS: Final = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip


class ChromiumMissing(Exception):
    """There is no Chromium on this machine; `.ci/test-browser` installs it where it may."""


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run it until the block ends. Raises ChromiumMissing."""
    given = os.environ.get("REDRIVE_TEST_CHROMIUM")
    path = given or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        raise ChromiumMissing(
            "Chromium is missing: .ci/test-browser installs it where it may; or set REDRIVE_TEST_CHROMIUM"
        )
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=path, args=_FLAGS)
        try:
            yield running
        finally:
            await running.close()
