"""Measure this device."""

from __future__ import annotations

import gc
import resource
import sys
from typing import Literal

import psutil
import torch


def device_kind() -> tuple[Literal["edge", "gpu", "cpu"], str]:
    """What this process would train on, and its name."""
    if torch.cuda.is_available():
        return "gpu", torch.cuda.get_device_name()
    return "cpu", f"{psutil.cpu_count(logical=True)} CPUs"


def memory_bytes() -> int:
    """Memory of the training device."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().total)


def peak_memory_bytes() -> int:
    """The most this process has ever held in RAM."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # the unit differs: bytes, KiB


def used_memory_bytes() -> int:
    """What this process holds on the training device; without an accelerator, in RAM."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_reserved())
    return int(psutil.Process().memory_info().rss)


def free_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
