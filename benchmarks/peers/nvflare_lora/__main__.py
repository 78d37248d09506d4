"""Run the job on the simulator.

python -m benchmarks.peers.nvflare_lora JOB
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

from benchmarks.peers.job import Job
from benchmarks.peers.nvflare_lora.adapter import Adapter


def main() -> None:
    """As many clients at once as the job has processes."""
    job = Job.read(path := sys.argv[1])
    recipe = FedAvgRecipe(
        name="lora",
        model={"path": f"{Adapter.__module__}.{Adapter.__name__}", "args": {"job": path}},
        min_clients=job.clients,
        num_rounds=job.rounds,
        train_script=str(Path(__file__).with_name("client.py")),
        train_args=shlex.quote(path),
    )
    with TemporaryDirectory() as folder:
        recipe.execute(
            SimEnv(
                num_clients=job.clients,
                num_threads=min(job.processes, job.clients),
                workspace_root=folder,
            )
        )
    job.report(Adapter(path).state_dict().values())


if __name__ == "__main__":
    main()
