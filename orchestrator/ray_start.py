"""Ray for a simulation: one of our own, or a cluster."""

from __future__ import annotations

import os
from typing import Any

import ray

from orchestrator.deployment.flower import DATABASE_VARIABLE
from strategies.cores import usable_cores


def start_ray(address: str | None) -> None:
    """Join the cluster at ``address``, or start a Ray of our own, unless that is done already.

    Its processes hear nothing of where the run database is.
    """
    if ray.is_initialized():
        return
    secret = os.environ.pop(DATABASE_VARIABLE, None)  # it may hold a password
    try:
        ray.init(**_ray_arguments(address, usable_cores()))
    finally:
        if secret is not None:
            os.environ[DATABASE_VARIABLE] = secret


def _ray_arguments(
    address: str | None, cores: int
) -> dict[str, Any]:  # Any: Ray takes what it is given
    """For ``ray.init``: the cluster at ``address``, or a Ray of our own whatever else is running.

    The size of a cluster is its own, and Ray refuses to be told another.  Its workers need our data
    directory at the same path, because a client may be simulated on any of them.
    """
    quiet: dict[str, Any] = {
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": "error",
    }
    return quiet | ({"address": address} if address else {"address": "local", "num_cpus": cores})
