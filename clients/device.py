"""Where a client computes: the one place that knows about devices and number formats.

What comes from disk or from a message is NumPy on the host and goes to the model through
``Device``; what leaves the model comes back through ``host``.  Nothing else converts.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Device:
    """``place`` as torch names it; ``autocast`` is the format of products, None for float32.

    Parameters, gradients and everything sent stay float32 whatever the products are made in.
    """

    place: str = "cpu"
    autocast_to: torch.dtype | None = None

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """The array there; on a CPU it shares the array's memory."""
        return torch.from_numpy(array).to(self.place)

    def inputs(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """A batch there."""
        return {name: self.tensor(array) for name, array in arrays.items()}

    def autocast(self) -> AbstractContextManager[object]:
        """While open, products are made in ``autocast_to``."""
        if self.autocast_to is None:
            return nullcontext()
        return torch.autocast(torch.device(self.place).type, dtype=self.autocast_to)

    @property
    def on_gpu(self) -> bool:
        """Whether it has memory of its own."""
        return torch.device(self.place).type != "cpu"


CPU: Final = Device()


def host(tensor: Tensor) -> NDArray[Any]:
    """The tensor's values on the host; a CPU tensor's own memory."""
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def beside(tensor: Tensor, array: NDArray[Any]) -> Tensor:
    """The array on the device ``tensor`` is on."""
    return torch.from_numpy(array).to(tensor.device)


def best_device(*, gpu_allowed: bool) -> Device:
    """CUDA where it is there and allowed, with bfloat16 products where the GPU has them.

    Never on a CPU: without matrix units bfloat16 is more than twice as slow there
    (docs/performance.md).
    """
    if not (gpu_allowed and torch.cuda.is_available()):
        return CPU
    return Device("cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else None)
