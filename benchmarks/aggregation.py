"""What exact merging costs, against forming ΔW and taking its SVD, and in memory.

    python -m benchmarks.aggregation --json -

20 clients with ranks from 2 to 16 and one 2048 x 2048 module, merged by ``exact`` and by the
definition on full matrices: float64, one BLAS thread both, in this process.  ``speedup`` is the
ratio of the median times, ``max_relative_error`` compares the 16 largest singular values.  Then
1 000 clients of rank 8, made one by one: ``peak_bytes_100`` and ``peak_bytes_1000`` are the largest
that Python and NumPy held after so many clients.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from strategies.aggregation.exact import Exact
from strategies.lora import Matrix, decompose, factors_of, keys_of, to_factors
from strategies.protocols import Contribution
from strategies.rng import rng_for
from strategies.types import GroupName, Tensors

GROUP = GroupName("module")
KEY_A, KEY_B = keys_of(GROUP)


def a_server(width: int, rank: int) -> Tensors:
    """A server in the middle of a run: factors that are not zero, components in order."""
    rng = rng_for(0, "server")
    parts = decompose(rng.normal(size=(rank, width)), rng.normal(size=(width, rank)))
    return dict(zip(keys_of(GROUP), to_factors(parts, rank), strict=True))


def a_client(index: int, width: int, rank: int) -> Contribution:
    """A client that moved both factors and holds ``100 + index`` examples."""
    rng = rng_for(0, "client", index)
    a = rng.normal(scale=0.1, size=(rank, width)).astype(np.float32)
    b = rng.normal(scale=0.1, size=(width, rank)).astype(np.float32)
    weight = {GROUP: np.array(100.0 + index)}
    return Contribution(client_id=str(index), delta={KEY_A: a, KEY_B: b}, weight=weight)


def merged(server: Tensors, clients: Iterator[Contribution]) -> Tensors:
    """One round of ``exact``."""
    return Exact().aggregate({}, server, clients, 1.0, rng_for(0)).tensors


def dense_svd(server: Tensors, clients: Sequence[Contribution]) -> Matrix:
    """The singular values of ΔW + Σ pₖ (BₖAₖ − sentₖ) by its definition; U and V are formed too."""
    a, b = (server[key].astype(np.float64) for key in (KEY_A, KEY_B))
    total = sum(float(c.weight[GROUP]) for c in clients)
    update = b @ a
    for client in clients:
        rank = client.delta[KEY_A].shape[0]
        local = (b[:, :rank] + client.delta[KEY_B]) @ (a[:rank] + client.delta[KEY_A])
        update += float(client.weight[GROUP]) / total * (local - b[:, :rank] @ a[:rank])
    return np.linalg.svd(update, full_matrices=False)[1]


def timed(act: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The median seconds of ``act``, and what it gave last."""
    seconds, found = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        found = act()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), found


def speed(width: int, repeats: int, dense_repeats: int) -> dict[str, float]:
    """``exact`` and the dense definition on the same clients."""
    ranks = np.linspace(2, 16, 20).round().astype(int).tolist()
    server = a_server(width, max(ranks))
    clients = [a_client(index, width, rank) for index, rank in enumerate(ranks)]
    exact_seconds, tensors = timed(lambda: merged(server, iter(clients)), repeats)
    dense_seconds, expected = timed(lambda: dense_svd(server, clients), dense_repeats)
    factors = factors_of(tensors, GROUP)
    if factors is None:
        raise RuntimeError(f"exact returned no factors for {GROUP}")
    found = decompose(factors.a.astype(np.float64), factors.b.astype(np.float64)).s
    expected = expected[: len(found)]
    return {
        "exact_seconds": exact_seconds,
        "dense_seconds": dense_seconds,
        "speedup": dense_seconds / exact_seconds,
        "singular_values": len(found),
        "max_relative_error": float(np.max(np.abs(found - expected) / expected)),
    }


def peak_bytes(width: int, rank: int, counts: Sequence[int]) -> dict[str, int]:
    """The largest allocation after so many clients of one merge, the clients' own included."""
    peaks = dict[str, int]()

    def arriving() -> Iterator[Contribution]:
        for index in range(max(counts)):
            if index in counts:
                peaks[f"peak_bytes_{index}"] = tracemalloc.get_traced_memory()[1]
            yield a_client(index, width, rank)

    server = a_server(width, rank)
    tracemalloc.start()
    merged(server, arriving())
    peaks[f"peak_bytes_{max(counts)}"] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peaks


def measure(width: int, repeats: int, dense_repeats: int, clients: int) -> dict[str, object]:
    """Both parts of the benchmark, with one BLAS thread."""
    with threadpool_limits(limits=1, user_api="blas"):
        return {
            "width": width,
            "blas_threads": 1,
            **speed(width, repeats, dense_repeats),
            **peak_bytes(width, 8, (clients // 10, clients)),
        }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--json", default="-", help="where to write the result; - is standard output"
    )
    parser.add_argument("--width", type=int, default=2048, help="of the square module")
    parser.add_argument("--repeats", type=int, default=9, help="runs of exact")
    parser.add_argument("--dense-repeats", type=int, default=3, help="runs of the dense SVD")
    parser.add_argument("--clients", type=int, default=1000, help="of the memory measurement")
    options = parser.parse_args()
    result = measure(options.width, options.repeats, options.dense_repeats, options.clients)
    text = json.dumps(result, indent=2)
    if options.json == "-":
        print(text)
    else:
        Path(options.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
