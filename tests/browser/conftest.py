"""One browser and one dashboard full of runs for all tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.home import Home
from tests.browser.seeding import seeded

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAGES = {
    "runs": "/",
    "search": "/?q=intents&status=completed&sort=acc&order=asc&limit=2",
    "nothing found": "/?q=zzz",
    "run": "/runs/{er}",
    "failed run": "/runs/{broken}",
    "new run": "/runs/{new}",
    "steps": "/runs/{er}/rounds",
    "step": "/runs/{er}/rounds/3",
    "events": "/runs/{er}/events",
    "client in a run": "/runs/{er}/clients/client-2",
    "clients": "/clients",
    "client": "/clients/client-2",
    "choice": "/compare",
    "compare": "/compare?run={finetune}&run={er}&run={derpp}",
    "strategies": "/strategies",
    "login": "/login",
}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    pytest.importorskip("playwright", reason="playwright is not installed: perennial[test]")
    from tests.browser import watching

    if watching.program() is None:
        pytest.skip(f"no browser: none of {', '.join(watching.NAMES)} is on the PATH")
    with watching.chromium() as found:
        yield found


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Address of the dashboard, and the path of every page by name."""
    from tests.browser.serving import served

    folder = tmp_path_factory.mktemp("pages")
    home = Home(folder=folder, database_url=f"sqlite:///{folder / 'perennial.db'}")
    ids = {name.removeprefix("intents-"): run_id for name, run_id in seeded(home).items()}
    with served(home) as address:
        yield {
            "address": address,
            "ids": ids,
            "pages": {name: address + path.format(**ids) for name, path in PAGES.items()},
        }


@pytest.fixture
def watched(browser: Browser) -> Iterator[Any]:
    """A page; when the test is over nothing may have been refused or complained about."""
    from tests.browser.watching import Watched

    found = Watched.open(browser)
    yield found
    found.check()
    found.close()
