"""``--once``: however often a run is asked for, there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from orchestrator.config import RunConfig
from orchestrator.stopping import is_led
from orchestrator.store.base import UNDER_WAY, RunRecord, RunStore

_LOOK_SECONDS: Final = 1.0


def earlier_run(
    config: RunConfig,
    store: RunStore,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> RunRecord | None:
    """The newest run of this very configuration, once nobody leads it; None if there is none.

    A run is known from the moment its server enters it into the database ``store``: of one that
    was submitted a moment before, nothing is known yet.
    """
    digest = config.digest()
    found = next((run for run in store.list_runs() if run.config_digest == digest), None)
    if found is None:
        return None
    if found.status in UNDER_WAY and is_led(found):
        say(f"run {found.run_id} of this configuration is under way; waiting for it to end")
    while found.status in UNDER_WAY and is_led(found):
        sleep(_LOOK_SECONDS)
        found = store.get_run(found.run_id)
    return found
