"""``python -m tests.fuzz --inputs 100000 --json -``: hostile messages by the hundred thousand.

Every input goes through the product's decoder and, where it is an answer, through the examination
against its order; a second, slow reader says what is valid.  Nothing may crash, be accepted wrongly
or allocate more than ``strategies/limits.py`` says.  With atheris installed
(``pip install 'perennial[fuzz]'``) ``--guided`` inputs more are guided by what code they reach.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.fuzz.running import shared_out


def guided(inputs: int, seed: int) -> dict[str, Any]:
    """The same by libFuzzer, in a process of its own, which it ends itself."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.guided", str(report), f"-runs={inputs}",
             f"-seed={seed + 1}", "-max_len=8192", "-rss_limit_mb=4096", folder],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode or not report.exists():
            raise RuntimeError(f"atheris ended with {done.returncode}: {done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(report.read_text())
        return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--guided", type=int, default=0, help="inputs of atheris besides")
    parser.add_argument("--workers", type=int, default=1, help="processes at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    chosen = parser.parse_args()
    report = shared_out(chosen.inputs, chosen.seed, chosen.workers)
    if chosen.guided:
        report["guided"] = guided(chosen.guided, chosen.seed)
    text = json.dumps(report, indent=2)
    if chosen.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(chosen.json).write_text(text + "\n")
    parts = [report, *filter(None, [report.get("guided")])]
    return int(any(p["crashes"] or p["accepted_invalid"] or p["over_limit"] for p in parts))


if __name__ == "__main__":
    sys.exit(main())
