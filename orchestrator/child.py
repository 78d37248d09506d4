"""The process of a run: ``python -m orchestrator.child RUN ray|in-process [ADDRESS]``.

Starting Ray is waiting for its processes, and loading our own modules is work: both at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from threading import Thread

from orchestrator.loading import loading


def main(run_id: str, transport: str, ray_address: str | None = None) -> None:
    """Carry a submitted run on to its end, on a Ray of its own if no other has an address."""
    with loading():
        others = Thread(target=_load)
        others.start()
        if transport == "ray":
            from orchestrator.ray_start import start_ray

            start_ray(ray_address)
        others.join()
    from orchestrator.launch import carry_on

    carry_on(run_id)


def _load() -> None:
    for name in ("conduct", "flower_transport", "launch"):
        import_module(f"orchestrator.{name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
