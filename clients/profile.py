"""Measure this device."""

from __future__ import annotations

import gc
import re
import resource
import sys
from pathlib import Path
from typing import Final, Literal

import psutil
import torch

from clients.device import Device
from strategies.errors import ModelError
from strategies.types import ClientKind

# A device that is lent less than this is an edge device unless its operator says otherwise.
EDGE_BYTES: Final = 4 * 2**30
_STATUS: Final = Path("/proc/self/status")


def device_kind(
    device: Device, limit_bytes: int | None, said: Literal["auto"] | ClientKind | None
) -> ClientKind:
    """What this process trains on: what the operator says, else what is there.

    Raises: ModelError for a GPU that is not there.
    """
    if said == "gpu" and not device.on_gpu:
        raise ModelError("kind 'gpu': found no CUDA device, expected one; set kind to 'auto'")
    if said and said != "auto":
        return said
    if device.on_gpu:
        return "gpu"
    return "edge" if limit_bytes is not None and limit_bytes < EDGE_BYTES else "cpu"


def device_name(device: Device) -> str:
    """The training device in words."""
    if device.on_gpu:
        return torch.cuda.get_device_name()
    return f"{psutil.cpu_count(logical=True)} CPUs"


def memory_bytes(device: Device) -> int:
    """Memory of the training device."""
    if device.on_gpu:
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().total)


def resident_bytes(device: Device) -> int:
    """Memory taken now: by this process or, on a GPU, by everybody who uses it."""
    if device.on_gpu:
        free, total = torch.cuda.mem_get_info()
        return total - free
    return _in_ram_bytes()


def peak_memory_bytes(device: Device | None = None) -> int:
    """The most this process has ever held in RAM or, of a GPU, there."""
    if device is not None and device.on_gpu:
        return int(torch.cuda.max_memory_reserved())
    if _STATUS.exists():
        # Linux's ru_maxrss would begin at what the process held that started this one.
        found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # the unit differs: bytes, KiB


def used_memory_bytes() -> int:
    """What this process holds on the training device; without an accelerator, in RAM."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_reserved())
    return _in_ram_bytes()


def free_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_disk_bytes(folder: Path) -> int:
    """Space left where ``folder`` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return int(psutil.disk_usage(str(folder)).free)


def _in_ram_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
