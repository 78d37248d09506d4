"""Published folders back into models: the untouched base, and base and adapter merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from clients.data import open_tokenizer
from clients.model.base import build_module
from strategies.errors import ModelError
from strategies.peft_format import BASE_WEIGHTS, CARD
from strategies.recipe import ModelRecipe

_ADAPTER: Final = "adapter_model.safetensors"
_MERGED: Final = "merged.safetensors"


def load_base(folder: str | Path) -> nn.Module:
    """The untouched base model an adapter folder belongs to, in evaluation mode.

    Raises: ModelError if the folder is none of ours or the checkpoint is out of reach.
    """
    folder = Path(folder)
    card = _card(folder)
    module = _module(card)
    if (folder / BASE_WEIGHTS).is_file():
        module.load_state_dict(_weights(folder / BASE_WEIGHTS), strict=False)
    return module.eval()


def merge(folder: Path, to: Path) -> None:
    """Write the model of an adapter folder with the adapter merged into its weights.

    A model with its checkpoint's own head is saved for ``AutoModelFor….from_pretrained``; one with
    our pooling is read by ``load_merged``.
    """
    _weights(folder / _ADAPTER)  # peft would take a pickled file instead of a missing one
    merged = PeftModel.from_pretrained(load_base(folder), str(folder)).merge_and_unload()
    to.mkdir(parents=True, exist_ok=True)
    if isinstance(merged, PreTrainedModel):
        merged.save_pretrained(to)
    else:
        state = {name: value.contiguous() for name, value in merged.state_dict().items()}
        save_file(state, to / _MERGED, metadata={"format": "pt"})
    shutil.copy(folder / CARD, to / CARD)


def load_merged(folder: str | Path) -> nn.Module:
    """The model ``merge`` wrote, in evaluation mode."""
    folder = Path(folder)
    module = _module(_card(folder))
    if isinstance(module, PreTrainedModel):
        loaded: nn.Module = type(module).from_pretrained(folder, use_safetensors=True)
        return loaded.eval()
    module.load_state_dict(_weights(folder / _MERGED))
    return module.eval()


def _weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises: ModelError for anything else.
    """
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{path} holds no weights: {error}; export or publish it again") from None


def _card(folder: Path) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is no adapter folder of perennial ({error}); give the path that "
            "`perennial run` printed or `perennial export` wrote"
        ) from None
    return card


def _module(card: dict[str, Any]) -> nn.Module:
    recipe = ModelRecipe.model_validate(card["model"])
    tokenizer = None if recipe.task == "image-classification" else open_tokenizer(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(card["seed"])
        return build_module(
            recipe,
            num_labels=len(card["labels"]),
            vocab_size=tokenizer.vocab_size if tokenizer else None,
        )
