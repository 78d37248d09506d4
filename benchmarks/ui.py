"""How long the dashboard's pages take on a large run database.

    python -m benchmarks.ui --json -

Seeds a SQLite database (``benchmarks/ui_seed.py``), asks every page and some of the API through the
whole application in this process, one request at a time, and prints ``pages.<path>.median_ms`` with
the size of the database and what is in it.  ``--keep FOLDER`` keeps the database, and uses the one
that is there.  ``whole`` runs have all of their replies, the others have everything else: the pages
of both are measured, and take as long.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import text
from starlette.testclient import TestClient

from benchmarks.ui_seed import Size, seed
from orchestrator.home import Home
from orchestrator.store.address import make_engine
from orchestrator.web import WebSettings, create_app
from strategies.types import client_ids

TABLES = ("runs", "rounds", "replies", "scores", "run_clients", "run_events")


def paths_of(whole: list[str], copies: list[str], size: Size) -> dict[str, str]:
    """Pages by the name they are reported under."""
    run, other, client = whole[0], (copies or whole)[-1], client_ids(size.clients)[-1]
    several = "&".join(f"run={each}" for each in [*whole[:2], *copies[:2]])
    middle = size.rounds // 2
    return {
        "/": "/",
        "/?status&tag": "/?status=completed&tag=sweep-1&sort=acc",
        "/?q": "/?q=sweep-42",
        "/?offset": f"/?offset={max(0, size.runs - 50)}&limit=50",
        "/runs/{whole}": f"/runs/{run}",
        "/runs/{copy}": f"/runs/{other}",
        "/runs/{run}/rounds": f"/runs/{run}/rounds?first={middle}&limit=100",
        "/runs/{run}/rounds/{step}": f"/runs/{run}/rounds/{middle}",
        "/runs/{run}/events": f"/runs/{run}/events",
        "/runs/{run}/clients/{client}": f"/runs/{run}/clients/{client}",
        "/clients": "/clients",
        "/clients/{client}": f"/clients/{client}",
        "/compare (4 runs)": f"/compare?{several}",
        "/strategies": "/strategies",
        "/api/v1/runs": "/api/v1/runs",
        "/api/v1/runs/{run}": f"/api/v1/runs/{run}",
        "/api/v1/runs/{run}/rounds": f"/api/v1/runs/{run}/rounds?limit=100",
        "/api/v1/runs/{run}/clients": f"/api/v1/runs/{run}/clients",
    }


def measure(client: TestClient, paths: Mapping[str, str], repeats: int) -> dict[str, Any]:
    """Milliseconds per page, by the wall and of this process, after one that is not counted."""
    found = dict[str, Any]()
    for name, path in paths.items():
        answer = client.get(path)
        if answer.status_code != 200:
            raise RuntimeError(f"{path} answered {answer.status_code}: {answer.text[:300]}")
        walls, cpus = list[float](), list[float]()
        for _ in range(repeats):
            start, used = time.perf_counter(), time.process_time()
            client.get(path)
            walls.append(1000 * (time.perf_counter() - start))
            cpus.append(1000 * (time.process_time() - used))
        found[name] = {
            "median_ms": round(statistics.median(walls), 1),
            "median_cpu_ms": round(statistics.median(cpus), 1),
            "min_ms": round(min(walls), 1),
            "max_ms": round(max(walls), 1),
            "bytes": len(answer.content),
        }
    return found


def database(url: str, path: Path) -> dict[str, int]:
    """Bytes of the file and rows of its tables."""
    engine = make_engine(url)
    with engine.connect() as connection:
        rows = {
            name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()  # noqa: S608
            for name in TABLES
        }
    engine.dispose()
    return {"bytes": path.stat().st_size, **rows}


def run(folder: Path, size: Size, repeats: int) -> dict[str, Any]:
    """Seed if there is nothing yet, and measure."""
    path, ids = folder / "perennial.db", folder / "ids.json"
    home = Home(folder=folder, database_url=f"sqlite:///{path}")
    start = time.perf_counter()
    if not ids.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        ids.write_text(json.dumps(seed(home.database_url, size)))
    seeding = time.perf_counter() - start
    whole, copies = json.loads(ids.read_text())
    with TestClient(create_app(home, WebSettings()), base_url="http://localhost") as client:
        pages = measure(client, paths_of(whole, copies, size), repeats)
    return {
        "runs": size.runs,
        "rounds_per_run": size.rounds,
        "clients": size.clients,
        "whole_runs": len(whole),
        "seeding_seconds": round(seeding, 1),
        "database": database(home.database_url, path),
        "pages": pages,
    }


def main() -> None:
    """Parse, seed, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="-", help="where to write; - is standard output")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=500, help="training rounds per run")
    parser.add_argument("--clients", type=int, default=100, help="asked in every round")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--whole", type=int, default=2, help="runs with all of their replies")
    parser.add_argument("--repeats", type=int, default=15, help="requests per page")
    parser.add_argument("--keep", type=Path, help="a folder for the database, used again")
    options = parser.parse_args()
    size = Size(
        runs=options.runs,
        rounds=options.rounds,
        clients=options.clients,
        tasks=options.tasks,
        whole=options.whole,
    )
    with tempfile.TemporaryDirectory() as temporary:
        result = run(options.keep or Path(temporary), size, options.repeats)
    written = json.dumps(result, indent=2)
    if options.json == "-":
        print(written)
    else:
        Path(options.json).write_text(written + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
