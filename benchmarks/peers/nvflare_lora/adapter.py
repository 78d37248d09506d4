"""What the server keeps and sends: the adapter and the head, not the base model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from benchmarks.peers.job import Job
from benchmarks.stock.stock.task import build_model


class Adapter(nn.Module):
    """The stock app's model, whose state is what peft saves of it."""

    def __init__(self, job: str) -> None:
        super().__init__()
        self.inner = build_model(Job.read(job).config())

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return dict(get_peft_model_state_dict(self.inner))

    def load_state_dict(self, state: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> None:
        set_peft_model_state_dict(self.inner, dict(state))
