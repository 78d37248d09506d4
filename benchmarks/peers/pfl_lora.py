"""The job on pfl-research: users simulated by one process per core, reduced by torch.distributed.

python -m torch.distributed.run --nproc-per-node 2 -m benchmarks.peers.pfl_lora JOB
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.peers.job import Job
from benchmarks.stock.stock.task import build_model, load_data


class Classifier(nn.Module):
    """The stock app's model with the two methods pfl asks of a module."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.inner = build_model(job.config())

    def loss(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        self.train()
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss

    def metrics(self, *batch: Tensor) -> dict[str, Weighted]:
        """Nothing that costs time: pfl scores before and after the first round's training."""
        return {"examples": Weighted(len(batch[0]), 1)}


class TimedModel(PyTorchModel):
    """Books what a user's local training takes."""

    job: Job

    def do_multiple_epochs_of(self, user_dataset: Dataset, *args: Any, **kwargs: Any) -> Any:
        with self.job.timed(user_dataset.user_id):
            return super().do_multiple_epochs_of(user_dataset, *args, **kwargs)


def users_of(job: Job) -> dict[str, list[Tensor]]:
    """The tokens, mask and labels of every client, padded to its longest text."""
    users = {}
    for client in range(job.clients):
        batches = list(load_data(job.config(), client, job.clients))
        keys = ("input_ids", "attention_mask", "labels")
        users[str(client)] = [_stacked([x for batch in batches for x in batch[k]]) for k in keys]
    return users


def _stacked(rows: list[Tensor]) -> Tensor:
    return torch.stack(rows) if rows[0].ndim == 0 else pad_sequence(rows, batch_first=True)


def main() -> None:
    """Train; the first process reports."""
    job = Job.read(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - pfl draws its users from the global generator
    module = Classifier(job)
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    model = TimedModel(
        model=module,
        local_optimizer_create=lambda _, lr: torch.optim.AdamW(wanted, lr=lr),
        central_optimizer=torch.optim.SGD(wanted, lr=1.0),
    )
    model.job = job
    users = users_of(job)
    data = FederatedDataset.from_slices(users, get_user_sampler("minimize_reuse", list(users)))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=job.rounds,
            evaluation_frequency=job.rounds + 1,
            train_cohort_size=job.clients,
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        model,
        NNTrainHyperParams(
            local_num_epochs=None,
            local_num_steps=job.local_steps,
            local_learning_rate=job.learning_rate,
            local_batch_size=job.batch_size,
        ),
    )
    if os.environ.get("RANK", "0") == "0":
        job.report(wanted)


if __name__ == "__main__":
    main()
