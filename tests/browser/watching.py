"""A browser that remembers what went wrong on its pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
_LISTEN = """
window.refused = [];
window.jumps = 0;
document.addEventListener("securitypolicyviolation", (event) =>
  window.refused.push(`${event.violatedDirective}: ${event.blockedURI || event.sample}`));
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.jumps += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""


def program() -> str | None:
    """Where the browser is, if it is here."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's browser, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass(slots=True)
class Watched:
    """A page and everything it complained about."""

    page: Page
    faults: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, browser: Browser, **options: Any) -> Watched:
        """A page of a fresh browser context."""
        options = {"viewport": {"width": 1200, "height": 900}, **options}
        context = browser.new_context(**options)
        context.add_init_script(_LISTEN)
        watched = cls(context.new_page())
        watched.page.set_default_timeout(240_000)
        watched.page.on("console", lambda message: watched._heard(message))
        watched.page.on("pageerror", lambda error: watched.faults.append(str(error)))
        return watched

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type}: {message.text}")

    def refused(self) -> list[str]:
        """What the content security policy refused on the page that is open."""
        found: list[str] = self.page.evaluate("window.refused")
        return found

    def check(self) -> None:
        """Nothing was refused, and nobody complained."""
        assert self.refused() == []
        assert self.faults == []

    def close(self) -> None:
        """Close the page with its context."""
        self.page.context.close()
