"""Screenshots of the dashboard: ``python -m tests.browser.screenshots --to docs/gallery``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.home import Home
from tests.browser.conftest import PAGES
from tests.browser.seeding import seeded
from tests.browser.serving import served
from tests.browser.watching import Watched, chromium

# name: page, place on it, width, height, colour scheme
SHOTS: dict[str, tuple[str, str, int, int, str]] = {
    "runs": ("runs", "main", 1200, 720, "light"),
    "run": ("run", "main", 1200, 1250, "light"),
    "run-cost": ("run", "#cost", 1200, 850, "dark"),
    "run-layers": ("run", "#layers", 1200, 900, "light"),
    "compare": ("compare", "main", 1200, 1250, "dark"),
    "client": ("client in a run", "main", 1200, 1000, "light"),
    "phone": ("run", "main", 360, 740, "light"),
}


def main() -> None:
    """Seed a data directory, serve it, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    folder: Path = parser.parse_args().to
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as data:
        home = Home(folder=Path(data), database_url=f"sqlite:///{data}/perennial.db")
        ids = {name.removeprefix("intents-"): run_id for name, run_id in seeded(home).items()}
        with served(home) as address, chromium() as browser:
            for name, (page, place, *how) in SHOTS.items():
                url = address + PAGES[page].format(**ids)
                _take(browser, url, place, how, folder / f"{name}.png")


def _take(browser: Any, url: str, place: str, how: list[Any], path: Path) -> None:
    width, height, scheme = how
    found = Watched.open(browser, viewport={"width": width, "height": height}, color_scheme=scheme)
    found.page.goto(url)
    found.page.locator(place).evaluate(
        "element => element.id !== 'main' && element.scrollIntoView()"
    )
    found.page.screenshot(path=path)
    found.check()
    found.close()


if __name__ == "__main__":
    main()
