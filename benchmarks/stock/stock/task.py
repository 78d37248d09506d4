"""Model, data and local training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def build_model(config: Mapping) -> torch.nn.Module:
    """MiniLM with a head and a LoRA adapter on all linear modules."""
    model = AutoModelForSequenceClassification.from_pretrained(
        config["model"], num_labels=config["num-classes"]
    )
    rank = config["rank"]
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=rank, lora_alpha=2 * rank, target_modules="all-linear"
    )
    return get_peft_model(model, lora)


def load_data(config: Mapping, partition: int, num_partitions: int) -> DataLoader:
    """Every ``num_partitions``-th line of the file, tokenised."""
    rows = [json.loads(line) for line in Path(config["train-file"]).read_text().splitlines()]
    names = sorted({row["label"] for row in rows})
    return loader_of(rows[partition::num_partitions], names, config)


def loader_of(rows: list[dict], names: list[str], config: Mapping) -> DataLoader:
    """Rows with ``text`` and ``label``, tokenised; a class is its place in ``names``."""
    padding = config.get("padding", "max_length")
    tokenizer = AutoTokenizer.from_pretrained(config["model"])

    def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
        texts = [row["text"] for row in batch]
        encoded = tokenizer(
            texts, padding=padding, truncation=True, max_length=32, return_tensors="pt"
        )
        labels = torch.tensor([names.index(row["label"]) for row in batch])
        return {**encoded, "labels": labels}

    return DataLoader(rows, batch_size=config["batch-size"], shuffle=True, collate_fn=collate)


def train(model: torch.nn.Module, data: DataLoader, config: Mapping) -> float:
    """The mean loss of ``local-steps`` steps of AdamW."""
    model.train()
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=config["learning-rate"])
    losses = []
    for batch in islice(data, config["local-steps"]):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)
