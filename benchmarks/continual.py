"""Methods against forgetting on CLINC150 with MiniLM, one domain after the other.

    python -m benchmarks.continual --model PATH_OF_MINILM --json -

Protocol: ``examples/clinc150.toml``, its memory of five examples per class over all clients.  A row
is the changes to that file in ``METHODS``; zero-shot is row 0 of any run's accuracy matrix.  A
task order is a permutation of the domains drawn from its number; order 0 is the file's own.
``bytes`` are those of training, probes, head sums and replay rounds, both ways; scoring is the
experimenter's, but the state a task ends with travels with it: ``bytes_with_scoring`` has both.
``local_seconds`` are the clients' own time outside scoring, ``replayed`` counts
every use.  With ``--json FILE`` what is done is in FILE after every run.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.clinc150 import data_settings, environment, options_of, run_once, traffic, write

_NO_REPLAY: Final = 'learning.methods=[{name="imprint"}]'


def _with(*methods: str) -> str:
    names = ", ".join(f'{{name="{name}"}}' for name in ("imprint", *methods))
    return f"learning.methods=[{names}]"


def _merged(name: str) -> list[str]:
    return [_with("er"), f'strategy.merging.name="{name}"']


_ANALYTIC: Final = [
    'model.head="random-features"',
    'strategy.head.name="analytic"',
    'learning.methods=[{name="finetune"}]',
]
METHODS: Final[Mapping[str, Sequence[str]]] = {
    "nearest-class-mean": [
        'strategy.head.name="prototype"',
        "learning.adapted_tasks=0",
        'learning.methods=[{name="finetune"}]',
    ],
    "finetune": [_NO_REPLAY],
    "er": [_with("er")],
    "derpp": [_with("derpp")],
    "agem": [_with("agem")],
    "lwf": [_with("lwf")],
    "prox": [_with("prox")],
    "dmt": [_with("dmt")],
    "online-ewc": [_with("online-ewc"), 'strategy.aggregation.name="ffa"'],
    "olora": [_with("olora"), 'strategy.merging.name="olora"'],
    "fot": [_NO_REPLAY, 'strategy.merging.name="fot"'],
    "half": [_NO_REPLAY, 'strategy.layer_selection.name="half"'],
    "balanced": [_with("er"), 'replay.policy.name="balanced"'],
    "mir": [_with("er"), 'replay.policy.name="mir"'],
    "forgetting": [_with("er"), 'replay.policy.name="forgetting"'],
    "steered": [_with("er"), "replay.steering={}"],
    "fpf": [_with("er"), 'replay.rounds.name="fpf"'],
    "fpf-forgetting": [
        _with("er"),
        'replay.rounds.name="fpf"',
        'replay.policy.name="forgetting"',
    ],
    "k-fpf": [_with("er"), "replay.share=0.0", 'replay.rounds={name="k-fpf", k=5, steps=4}'],
    "adaptive": [_with("er"), "replay.share=0.0", 'replay.rounds={name="adaptive"}'],
    "wise-ft": _merged("wise-ft"),
    "lines": _merged("lines"),
    "model-stock": _merged("model-stock"),
    "task-vectors": _merged("task-vectors"),
    "atlas": _merged("atlas"),
    "linear": ['model.head="linear"', 'learning.methods=[{name="er"}]'],
    "simplex": ['model.head="simplex"', 'learning.methods=[{name="er"}]'],
    "analytic": [*_ANALYTIC, "learning.adapted_tasks=0"],
    "analytic-adapted": [
        *_ANALYTIC,
        "learning.adapted_tasks=1",
        "learning.head_learning_rate=1e-4",
    ],
    "joint": [_NO_REPLAY, "learning.mode=joint", "learning.schedule=linear"],
}


def measure(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """One method, one seed, one order."""
    shown, rounds = run_once(f"continual-{name}", settings)
    spent = [reply for record in rounds for reply in record.replies if record.kind != "evaluate"]
    moved = traffic(rounds)
    return {
        "acc": shown["acc"],
        "aia": shown["aia"],
        "forgetting": shown["forgetting"],
        "bwt": shown["bwt"],
        "learning_accuracy": shown["learning_accuracy"],
        **_flips(shown["releases"]),
        "bytes": moved["bytes_up"] + moved["bytes_down"],
        **moved,
        "bytes_with_scoring": shown["bytes_up"] + shown["bytes_down"],
        "replayed": sum(reply.metrics.get("replayed", 0.0) for reply in spent),
        "local_seconds": sum(reply.seconds.get("compute", 0.0) for reply in spent),
        "wall_seconds": shown["wall_seconds"],
        "zero_shot": _mean(shown["accuracy_matrix"][0]),
    }


def _flips(releases: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean rates over the releases that could be compared with the one before."""
    found = [release for release in releases if release["num_compared"]]
    return {
        name: statistics.mean(release[name] for release in found)
        for name in ("negative_flip_rate", "positive_flip_rate")
        if found
    }


def _mean(row: Sequence[float | None]) -> float | None:
    found = [value for value in row if value is not None]
    return statistics.mean(found) if found else None


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of every figure over seeds and orders, and the spread of the main ones."""
    means = {
        key: statistics.mean(run[key] for run in runs)
        for key in runs[0]
        if all(run.get(key) is not None for run in runs)
    }
    spread = {
        f"{key}_spread": max(run[key] for run in runs) - min(run[key] for run in runs)
        for key in ("acc", "forgetting", "bwt")
        if key in means
    }
    return {**means, **spread, "runs": len(runs)}


def main() -> None:
    """Run the chosen methods with every seed and order."""
    parser = options_of(__doc__ or "")
    parser.add_argument("--orders", type=int, nargs="+", default=[0], help="task orders, by number")
    options = parser.parse_args()
    chosen = {n: s for n, s in METHODS.items() if not options.only or n in options.only}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for order in options.orders:
        with TemporaryDirectory() as folder:
            data = data_settings(options.domains, Path(folder), order)
            common = [f'model.name="{options.model}"', *data]
            for seed in options.seeds:
                for name, changes in chosen.items():
                    settings = [*common, *changes, *options.set, f"seed={seed}"]
                    found[name].append(measure(name, settings))
                    if options.json != "-":
                        write(_result(found, options), options.json)
    if options.json == "-":
        write(_result(found, options), options.json)


def _result(found: Mapping[str, list[dict[str, Any]]], options: Any) -> dict[str, Any]:
    return {
        "methods": {name: summary(runs) for name, runs in found.items() if runs},
        "seeds": options.seeds,
        "orders": options.orders,
        "domains": options.domains,
        "runs": found,
        **environment(),
    }


if __name__ == "__main__":
    sys.exit(main())
