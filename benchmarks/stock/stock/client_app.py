"""Train what was received, send all of it back."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from stock.task import build_model, load_data, train

app = ClientApp()


@app.train()
def train_handler(message: Message, context: Context) -> Message:
    """One round of local training."""
    begun = time.time()
    torch.set_num_threads(1)
    config, node = context.run_config, context.node_config
    partition, num_partitions = int(node["partition-id"]), int(node["num-partitions"])
    model = build_model(config)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    data = load_data(config, partition, num_partitions)
    start = time.time()
    loss = train(model, data, config)
    line = {"client": partition, "begun": begun, "start": start, "end": time.time()}
    with (Path(config["timings"]) / f"client-{partition}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(data.dataset)})
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
