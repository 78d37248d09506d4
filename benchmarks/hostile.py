"""Hostile clients on CLINC150 with MiniLM: what robust strategies save, and what they cost.

    python -m benchmarks.hostile --model PATH_OF_MINILM --json -

Protocol: ``examples/clinc150.toml`` with everybody asked in every round, for screening needs an
honest majority in each: of 20 clients with 6 hostile ones a cohort of 10 may hold 6 of them.  The
share ``--hostile`` of the clients is drawn from the run's seed.  They train as all do, and what
they send of it is changed on its way:

* ``nan``: every value is NaN, which is refused when the reply is examined, whatever the option;
* ``scaled``: 1000 times as far;
* ``sign-flipped``: as far in the opposite direction; ``sign-flipped-5``: five times as far;
* ``random``: Gaussian, every tensor ten times as long as its update.

Their scores are honest and count, and so do the numbers of examples they give.  A row is an option:
changes to that file.  For every option and attack: ACC, the difference to the same option's clean
run and to clean ``exact``, in points, and how many replies were refused or changed by screening.
Where a run could not end, ``ended`` says why and there is no ACC.  Clients work one after another
in this process.  With ``--json FILE`` what is done is in FILE after every run.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from benchmarks.clinc150 import data_settings, environment, options_of, run_once, write
from clients.settings import ClientSettings
from clients.trainer import LocalTrainer
from orchestrator.conduct import conduct
from orchestrator.config import RunConfig
from orchestrator.home import Home
from orchestrator.store.base import RoundRecord, RunStatus
from orchestrator.transport import Endpoint, InProcessTransport
from strategies.rng import Rng, rng_for
from strategies.types import Array, ClientId, Update, client_ids
from strategies.wire import decode_result, encode_result, kind_of

Attack = Callable[[Array, Rng], Array]
CLEAN: Final = "clean"


def _gaussian(value: Array, rng: Rng) -> Array:
    noise = rng.normal(size=value.shape)
    return 10 * noise * (np.linalg.norm(value) / max(float(np.linalg.norm(noise)), 1e-30))


ATTACKS: Final[Mapping[str, Attack]] = {
    "nan": lambda value, rng: np.full_like(value, np.nan),
    "scaled": lambda value, rng: 1000 * value,
    "sign-flipped": lambda value, rng: -value,
    "sign-flipped-5": lambda value, rng: -5 * value,
    "random": _gaussian,
}
OPTIONS: Final[Mapping[str, Sequence[str]]] = {
    "exact": [],
    "norm-clipping": ['strategy.screening.name="norm-clipping"'],
    "krum": ['strategy.screening.name="krum"'],
    "multi-krum": ['strategy.screening.name="multi-krum"'],
    "multi-krum-quarantine": [
        'strategy.screening.name="multi-krum"',
        "federation.quarantine={faults=2, rounds=20}",
    ],
    "trimmed-mean": ['strategy.aggregation={name="trimmed-mean", trim=0.4}'],
    "coordinate-median": ['strategy.aggregation.name="coordinate-median"'],
    "multi-krum-trimmed-mean": [
        'strategy.screening.name="multi-krum"',
        'strategy.aggregation={name="trimmed-mean", trim=0.2}',
    ],
}


def drawn(clients: Sequence[ClientId], share: float, seed: int) -> frozenset[ClientId]:
    """The hostile ones: the share of all, rounded, by the run's seed."""
    order = rng_for(seed, "hostile-clients").permutation(len(clients))
    return frozenset(clients[index] for index in order[: round(share * len(clients))])


def hostile(endpoint: Endpoint, attack: Attack, seed: int) -> Endpoint:
    """A client that does as it is told and lies about what came of it."""

    def answer(message: bytes) -> bytes:
        reply = endpoint(message)
        if kind_of(reply) != "update":
            return reply
        result = decode_result(reply)
        if not isinstance(result, Update) or not result.delta:
            return reply
        rng = rng_for(seed, "attack", result.assignment_id)
        delta = {
            key: attack(value, rng).astype(np.float32)
            for key, value in sorted(result.delta.items())
        }
        return encode_result(replace(result, delta=delta))

    return answer


def launch(run_id: str, config: RunConfig, home: Home, *, attack: str, share: float) -> RunStatus:
    """All clients in this process, those drawn behind the attack."""
    threads = config.federation.threads_per_client
    settings = ClientSettings(
        cache_folder=home.cache_folder, state_folder=home.client_folder, num_threads=threads
    )
    trainer, clients = LocalTrainer(settings), client_ids(config.federation.clients)
    endpoints: dict[ClientId, Endpoint] = {c: partial(trainer.answer, c) for c in clients}
    if attack != CLEAN:
        for client in drawn(clients, share, config.seed):
            endpoints[client] = hostile(endpoints[client], ATTACKS[attack], config.seed)
    return conduct(run_id, config, InProcessTransport(endpoints), home)


def measure(option: str, attack: str, settings: Sequence[str], share: float) -> dict[str, Any]:
    """One option under one attack, one seed."""
    carry = partial(launch, attack=attack, share=share)
    try:
        shown, rounds = run_once(f"hostile-{option}-{attack}", settings, carry)
    except RuntimeError as error:
        return {"acc": None, "ended": str(error)}
    events = [event["kind"] for event in shown["events"]]
    return {
        "acc": shown["acc"],
        "quarantined": events.count("client-quarantined"),
        "released": events.count("client-released"),
        **_counted(rounds),
        "wall_seconds": shown["wall_seconds"],
    }


def _counted(rounds: Sequence[RoundRecord]) -> dict[str, float]:
    """Replies of training rounds; ``reduced`` count less than they came, or not at all."""
    replies = [reply for record in rounds if record.kind == "train" for reply in record.replies]
    shares = [reply.metrics.get("screening_share", 1.0) for reply in replies]
    return {
        "replies": len(replies),
        "refused": sum(reply.status == "failed" for reply in replies),
        "reduced": sum(share < 1 for share in shares),
    }


def table(found: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[str, Any]:
    """Means over seeds per option and attack, with the differences in points of ACC."""
    accs = {
        option: {attack: _acc(runs) for attack, runs in attacks.items()}
        for option, attacks in found.items()
    }
    reference = accs.get("exact", {}).get(CLEAN)
    return {
        option: {
            attack: {
                "acc": acc,
                "points_from_own_clean": _points(acc, own.get(CLEAN)),
                "points_from_clean_exact": _points(acc, reference),
            }
            for attack, acc in own.items()
        }
        for option, own in accs.items()
    }


def _acc(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """None where a run did not end, or nothing was done."""
    accs = [run["acc"] for run in runs]
    return statistics.mean(accs) if accs and None not in accs else None


def _points(acc: float | None, reference: float | None) -> float | None:
    return None if acc is None or reference is None else 100 * (acc - reference)


def main() -> None:
    """Run the chosen options clean and under the chosen attacks, with every seed."""
    parser = options_of(__doc__ or "")
    parser.add_argument("--options", nargs="+", dest="only", choices=OPTIONS, help="as --only")
    parser.add_argument("--attacks", nargs="*", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--hostile", type=float, default=0.3, help="share of the clients")
    options = parser.parse_args()
    chosen = {n: s for n, s in OPTIONS.items() if not options.only or n in options.only}
    attacks = [CLEAN, *options.attacks]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {
        name: {attack: [] for attack in attacks} for name in chosen
    }
    with TemporaryDirectory() as folder:
        data = data_settings(options.domains, Path(folder))
        common = [f'model.name="{options.model}"', *data, "federation.cohort=20"]
        for seed in options.seeds:
            for name, changes in chosen.items():
                for attack in attacks:
                    settings = [*common, *changes, *options.set, f"seed={seed}"]
                    run = measure(name, attack, settings, options.hostile)
                    found[name][attack].append(run)
                    if options.json != "-":
                        write(_result(found, options), options.json)
    if options.json == "-":
        write(_result(found, options), options.json)


def _result(found: Mapping[str, Any], options: Any) -> dict[str, Any]:
    return {
        "options": table(found),
        "hostile": options.hostile,
        "seeds": options.seeds,
        "domains": options.domains,
        "runs": found,
        **environment(),
    }


if __name__ == "__main__":
    sys.exit(main())
