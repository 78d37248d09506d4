"""Kill runs at named points, resume them, and say whether they are the runs that were not killed.

    python -m tests.chaos --points all --json -

Needs the repository on PYTHONPATH.  Exit code 0 if every run that was killed ended as it should.
"""

# ruff: noqa: E402 - a process to be forked must have no threads, so this comes before NumPy
from __future__ import annotations

import os

for _library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from tests.chaos.wrapping import install

install()

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.chaos.campaign import Campaign
from tests.chaos.points import POINTS, named

_RECIPES = {
    "in-process": ("golden", "letters", "buffered"),
    "ray": ("ray",),
    "all": ("golden", "letters", "buffered", "ray"),
}


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--points", nargs="+", default=["all"], metavar="NAME")
    parser.add_argument("--kills", type=int, help="default: every point three times")
    parser.add_argument("--transport", choices=sorted(_RECIPES), default="all")
    parser.add_argument("--recipe", choices=_RECIPES["all"], help="one run only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    parser.add_argument("--minutes", type=float, help="start no trial after so long")
    parser.add_argument("--json", metavar="FILE", help="- for standard output")
    parser.add_argument("--list", action="store_true", help="print the names of all points")
    given = parser.parse_args()
    if given.list:
        print("\n".join(POINTS))  # noqa: T201
        return 0
    try:
        points = named(given.points)
    except KeyError as error:
        parser.error(str(error.args[0]))
    fast = Path("/dev/shm")  # noqa: S108 - a kill does not need a disk, and a disk is slow
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=fast if fast.is_dir() else None))
    campaign = Campaign(folder=folder, seed=given.seed, jobs=given.jobs, minutes=given.minutes)
    recipes = (given.recipe,) if given.recipe else _RECIPES[given.transport]
    report = campaign.carried_out(recipes, points, given.kills)
    text = json.dumps(report, indent=2)
    if given.json == "-":
        print(text)  # noqa: T201
    elif given.json:
        Path(given.json).write_text(text + "\n", encoding="utf-8")
    return 0 if report["kills"] == report["identical"] else 1


if __name__ == "__main__":
    sys.exit(main())
