"""The job all peers do, importing nothing of ours but the stock app: they run it elsewhere.

MiniLM with LoRA r = 8 on all linear modules and a head; the lines of a file dealt in turn to the
clients; local steps of AdamW.  A peer's program is given the path of a ``Job`` as JSON, and writes
to its ``timings`` a file per client with a line per round, and ``sent.json``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be learnt, and by how many."""

    model: str
    train_file: str
    timings: str
    """A folder."""
    clients: int = 20
    rounds: int = 3
    local_steps: int = 4
    batch_size: int = 16
    rank: int = 8
    learning_rate: float = 1e-3
    processes: int = 2

    @classmethod
    def read(cls, path: str) -> Job:
        """The job in a JSON file."""
        return cls(**json.loads(Path(path).read_text()))

    def write(self, path: Path) -> None:
        """As ``read`` reads it."""
        path.write_text(json.dumps(asdict(self)))

    @property
    def num_classes(self) -> int:
        """Labels of the file."""
        lines = Path(self.train_file).read_text().splitlines()
        return len({json.loads(line)["label"] for line in lines})

    def config(self) -> Mapping[str, Any]:
        """As the stock app's functions want it."""
        return {
            "model": self.model,
            "train-file": self.train_file,
            "num-classes": self.num_classes,
            "local-steps": self.local_steps,
            "batch-size": self.batch_size,
            "rank": self.rank,
            "learning-rate": self.learning_rate,
            "padding": "longest",
        }

    @contextmanager
    def timed(self, client: str) -> Iterator[None]:
        """Book what runs inside as a client's local training."""
        start = time.time()
        yield
        line = {"client": client, "start": start, "end": time.time()}
        with (Path(self.timings) / f"client-{client}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def report(self, sent: Iterable[Tensor]) -> None:
        """Say what one message carries: these tensors."""
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in sent)
        (Path(self.timings) / "sent.json").write_text(json.dumps({"message_bytes": num_bytes}))
