"""Average whole adapters."""

from __future__ import annotations

import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import get_peft_model_state_dict

from stock.task import build_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """``num-rounds`` rounds of FedAvg over everybody, and no evaluation."""
    config, stamps = context.run_config, []
    arrays = ArrayRecord(get_peft_model_state_dict(build_model(config)))

    def stamp(server_round: int, arrays: ArrayRecord) -> None:
        stamps.append(time.time())

    FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_evaluate_nodes=0).start(
        grid, arrays, num_rounds=config["num-rounds"], evaluate_fn=stamp
    )
    (Path(config["timings"]) / "server.json").write_text(json.dumps(stamps))
