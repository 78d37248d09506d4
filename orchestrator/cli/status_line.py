"""What one sees of a running client."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from orchestrator.cli.output import console

if TYPE_CHECKING:
    from orchestrator.deployment.client import Client

_COUNTDOWN: Final = re.compile(r", again in \d+ s")


class StatusLine:
    """A client's status: one live line on a terminal, elsewhere a line per change."""

    def __init__(self, running: Client, out: Console, live: Live | None) -> None:
        self._running, self._out, self._live, self._last = running, out, live, ""

    def __call__(self) -> None:
        line = self._running.status(time.monotonic())
        if self._live:
            self._live.update(Text(line))
        elif (known := _COUNTDOWN.sub("", line)) != self._last:
            self._last = known
            self.say(line)

    def say(self, line: str) -> None:
        """A line that stays."""
        self._out.print(line, highlight=False, soft_wrap=True, markup=False)
        sys.stdout.flush()


@contextmanager
def status_line(running: Client) -> Iterator[StatusLine]:
    """A status line for as long as the block lasts."""
    out = console()
    if not out.is_terminal:
        yield StatusLine(running, out, None)
        return
    with Live(console=out, refresh_per_second=4, transient=True) as live:
        yield StatusLine(running, out, live)
