"""A client of the job, as NVFlare's Client API has it: receive, train, send, until told to stop."""

from __future__ import annotations

import sys

import nvflare.client as flare
import torch

from benchmarks.peers.job import Job
from benchmarks.peers.nvflare_lora.adapter import Adapter
from benchmarks.stock.stock.task import load_data, train


def main() -> None:
    """One process may be several clients, one after another."""
    torch.set_num_threads(1)
    job = Job.read(path := sys.argv[1])
    flare.init()
    client = int(flare.get_site_name().removeprefix("site-")) - 1
    model = Adapter(path)
    data = load_data(job.config(), client, job.clients)
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        with job.timed(str(client)):
            model.load_state_dict({k: torch.as_tensor(v) for k, v in received.params.items()})
            train(model.inner, data, job.config())
        weight = {"NUM_STEPS_CURRENT_ROUND": job.local_steps}
        flare.send(flare.FLModel(params=model.state_dict(), meta=weight))


if __name__ == "__main__":
    main()
