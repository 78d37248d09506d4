"""Plain fine-tuning on the current task: the baseline that forgets."""

from __future__ import annotations

from dataclasses import dataclass

from clients.methods.base import ClientMethod


@dataclass(frozen=True, slots=True)
class Finetune(ClientMethod):
    """No hooks. Source: FedAvg with LoRA and nothing else (FedIT, arXiv 2305.05644)."""
