"""Bytes until 45 intents are told apart: ours, and a stock Flower app.

    python -m benchmarks.bytes_to_target --model PATH_OF_MINILM --json -

The first three domains of CLINC150 over the same 20 clients (Dirichlet 0.5, dealt by the seed), a
cohort of 10 a round, 8 local steps of 16 on both sides.  The target is ACC >= 0.85: the mean, over
the three domains' test sets, of the global model's accuracy among all 45 intents.

``stock`` is ``benchmarks/stock`` (LoRA r = 16 on all linear modules and a head, float32, the whole
adapter both ways, ``FedAvg``) in ``sequence``, one domain after the other as ours, and ``pooled``:
clients hold all three domains from the start, which spares it all forgetting.  It is scored on the
server after every round, which costs it no bytes, and stops with the first round at the target.  In
``sequence`` no round before the third domain can reach it, for a third of the intents is unknown.
A row that does not reach it has ``reached`` false, and its bytes are a lower bound.

A row of ours is a whole run of the stream as ``OURS`` changes ``examples/clinc150.toml``; its bytes
are those of the whole run whenever the target was passed.  ``bytes`` are of training, probes and
head sums; ``bytes_with_scoring`` count every message of the run, introductions included.  Both
sides count what Flower sends: every object of a message, deflated.  ``ratio`` is against the stock
row with the fewest bytes of those that reached the target; ``ratio_to_one_round`` is against the
stock app's first round, the least it can spend, whatever it needs to get there.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from flwr.app import Message

from benchmarks.clinc150 import (
    RUN_FILE,
    data_settings,
    environment,
    options_of,
    rows_of,
    run_once,
    write,
)
from benchmarks.stock_rounds import Row, Stock, Traffic, identify, weight
from clients.data import Dataset, open_dataset
from clients.settings import ClientSettings
from clients.trainer import LocalTrainer
from orchestrator.conduct import conduct
from orchestrator.config import RunConfig, load_config
from orchestrator.home import Home
from orchestrator.store.base import RoundRecord, RunStatus
from orchestrator.transport import Endpoint, InProcessTransport
from strategies.rng import rng_for
from strategies.types import ClientId, client_ids
from strategies.wire import to_record

TARGET: Final = 0.85
DOMAINS: Final = 3
_MEDIANS: Final = {
    "acc",
    "bytes",
    "bytes_with_scoring",
    "first_round_bytes",
    "forgetting",
    "rounds",
    "wall_seconds",
}
_NO_REPLAY: Final = 'learning.methods=[{name="imprint"}]'
_FROZEN: Final = ['learning.methods=[{name="finetune"}]', "learning.adapted_tasks=0"]
OURS: Final[Mapping[str, Sequence[str]]] = {
    "compressed": [
        _NO_REPLAY,
        "learning.rounds_per_task=1",
        'strategy.layer_selection={name="top", blocks=1}',
        'strategy.rank={name="spectral", rank=4}',
        'strategy.compression=[{name="int8"}]',
        'strategy.downlink="int8"',
    ],
    "analytic": [
        *_FROZEN,
        'model.head="random-features"',
        "model.random_features=500",
        'strategy.head={name="analytic", precision="float16"}',
    ],
    "nearest-class-mean": [*_FROZEN, 'strategy.head.name="prototype"'],
}


def ours(settings: Sequence[str]) -> dict[str, Any]:
    """One run of ours in this process, with every message weighed."""
    heard = Counter[str]()
    shown, rounds = run_once("bytes-to-target", settings, partial(_launch, heard=heard))
    counted = [record for record in rounds if record.kind != "evaluate"]
    bare = _bytes_of(counted) + _num_messages(counted) * _envelope()
    return {
        "acc": shown["acc"],
        "reached": shown["acc"] >= TARGET,
        "forgetting": shown["forgetting"],
        "accuracy_matrix": shown["accuracy_matrix"],
        "bytes": bare,
        "bytes_with_scoring": heard["bytes"] + heard["messages"] * _envelope(),
        "messages": heard["messages"],
        "rounds": sum(record.kind == "train" for record in rounds),
        "wall_seconds": shown["wall_seconds"],
    }


def _launch(run_id: str, config: RunConfig, home: Home, *, heard: Counter[str]) -> RunStatus:
    """All clients in this process; ``heard`` counts what goes to and comes from them."""
    settings = ClientSettings(
        cache_folder=home.cache_folder, state_folder=home.client_folder, num_threads=1
    )
    trainer = LocalTrainer(settings)

    def answer(client: ClientId, message: bytes) -> bytes:
        reply = trainer.answer(client, message)
        heard.update(bytes=len(message) + len(reply), messages=2)
        return reply

    endpoints: dict[ClientId, Endpoint] = {
        client: partial(answer, client) for client in client_ids(config.federation.clients)
    }
    return conduct(run_id, config, InProcessTransport(endpoints), home)


def _bytes_of(rounds: Sequence[RoundRecord]) -> int:
    return sum(reply.bytes_up + reply.bytes_down for r in rounds for reply in r.replies)


def _num_messages(rounds: Sequence[RoundRecord]) -> int:
    return 2 * sum(len(record.replies) for record in rounds)


def _envelope() -> int:
    """What Flower adds to a message of ours."""
    identify()
    return weight(Message(to_record(b""), 1, "train"))


def stock(
    config: Mapping[str, Any],
    deal: Sequence[Sequence[Sequence[Row]]],
    test: Sequence[Row],
    seed: int,
) -> dict[str, Any]:
    """Rounds of the stock app until the target is reached or the rounds are used up.

    ``deal`` is, per stage, what each client holds; ``config["rounds"]`` are those of a stage.
    """
    names = sorted({row["label"] for row in test})
    app = Stock({**config, "num-classes": len(names)}, names, seed)
    each, accs = list[Traffic](), list[float]()
    for stage, held in enumerate(deal):
        for number in range(config["rounds"]):
            drawn = rng_for(seed, "stock-cohort", stage, number).permutation(len(held))
            asked = [int(client) for client in drawn[: config["cohort"]]]
            each.append(app.round(stage * config["rounds"] + number, asked, held.__getitem__))
            if stage == len(deal) - 1:
                accs.append(float(np.mean(list(app.correct(test)))))
                if accs[-1] >= TARGET:
                    break
    spent = sum(each, Traffic())
    return {
        "acc": max(accs),
        "accs": accs,
        "reached": max(accs) >= TARGET,
        "rounds": len(each),
        "bytes": spent.down + spent.up,
        "bytes_down": spent.down,
        "bytes_up": spent.up,
        "first_round_bytes": each[0].down + each[0].up,
    }


def dealt(dataset: Dataset, rows: Sequence[Row]) -> list[list[list[Row]]]:
    """Per task, the training rows of each client, as our own clients hold them."""
    shards = [dataset.shard(client) for client in range(dataset.num_clients)]
    return [
        [[rows[i] for i in shard.train_ids(task)] for shard in shards]
        for task in range(len(dataset.tasks))
    ]


def pooled(deal: Sequence[Sequence[Sequence[Row]]]) -> list[list[list[Row]]]:
    """One stage in which everybody holds the examples of all tasks."""
    return [[[row for rows in held for row in rows] for held in zip(*deal, strict=True)]]


def summary(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Per row medians over the seeds, and whether every seed reached the target."""
    return {
        name: {
            **{
                key: statistics.median(run[key] for run in rows)
                for key in _MEDIANS & rows[0].keys()
            },
            "acc_range": [min(run["acc"] for run in rows), max(run["acc"] for run in rows)],
            "reached": all(run["reached"] for run in rows),
        }
        for name, rows in runs.items()
        if rows
    }


def with_ratios(
    ours: Mapping[str, dict[str, Any]], stock: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Rows of ours with their share of the peer's bytes: until it got there, and of one round."""
    reached = [row["bytes"] for row in stock.values() if row["reached"]]
    first = [row["first_round_bytes"] for row in stock.values()]
    return {
        name: {**row, **_shares(row, "ratio", reached), **_shares(row, "ratio_to_one_round", first)}
        for name, row in ours.items()
    }


def _shares(row: Mapping[str, Any], name: str, references: Sequence[float]) -> dict[str, float]:
    if not references:
        return {}
    return {
        name: row["bytes"] / min(references),
        f"{name}_with_scoring": row["bytes_with_scoring"] / min(references),
    }


def main() -> None:
    """Every chosen case with every seed; with ``--json FILE`` what is done is there after each."""
    parser = options_of(__doc__ or "")
    parser.set_defaults(domains=DOMAINS)
    parser.add_argument("--rounds", type=int, default=30, help="of the stock app, pooled, at most")
    parser.add_argument("--rounds-per-task", type=int, default=5, help="of it in sequence")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the stock app")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {"ours": {}, "stock": {}}
    with TemporaryDirectory() as folder:
        data = data_settings(options.domains, Path(folder))
        common = [f'model.name="{options.model}"', *data, *options.set]
        for seed in options.seeds:
            for side, name, measure in _cases([*common, f"seed={seed}"], seed, options):
                found[side].setdefault(name, []).append(measure())
                if options.json != "-":
                    write(_result(found, options), options.json)
    if options.json == "-":
        write(_result(found, options), options.json)


def _cases(
    common: Sequence[str], seed: int, options: Any
) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """The chosen cases of both sides: side, name, and what measures it."""
    config = load_config(RUN_FILE, common)
    dataset = open_dataset(config.shared_recipe(), Home.from_environment().cache_folder)
    train, test = (rows_of(Path(str(path))) for path in (config.data.train, config.data.test))
    job = {
        "model": options.model,
        "local-steps": config.learning.local_steps,
        "batch-size": config.learning.batch_size,
        "rank": 16,
        "learning-rate": options.learning_rate,
        "cohort": config.cohort_size(),
    }
    deal = dealt(dataset, train)
    peers = {
        "sequence": ({**job, "rounds": options.rounds_per_task}, deal),
        "pooled": ({**job, "rounds": options.rounds}, pooled(deal)),
    }
    for name, changes in OURS.items():
        if not options.only or name in options.only:
            yield "ours", name, partial(ours, [*common, *changes])
    for name, (peer, stages) in peers.items():
        if not options.only or name in options.only:
            yield "stock", name, partial(stock, peer, stages, test, seed)


def _result(found: Mapping[str, Any], options: Any) -> dict[str, Any]:
    stock = summary(found["stock"])
    return {
        "ours": with_ratios(summary(found["ours"]), stock),
        "stock": stock,
        "target": TARGET,
        "seeds": options.seeds,
        "domains": options.domains,
        "learning_rate_of_stock": options.learning_rate,
        "runs": found,
        **environment(),
    }


if __name__ == "__main__":
    sys.exit(main())
