"""What one sees while a run is under way: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.store.base import RunStore


@dataclass(slots=True)
class LiveView:
    """Shows a run's published progress until the ``with`` block ends."""

    run_id: str
    store: RunStore
    console: Console
    _live: Live | None = None
    _started: float = field(default_factory=time.monotonic)
    _first_step: tuple[int, float] | None = None
    _last_line: tuple[object, ...] = ()

    def __enter__(self) -> LiveView:
        self.console.print(f"run [bold]{self.run_id}[/]")
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def refresh(self) -> None:
        """Read the newest progress and show what changed."""
        record = self.store.get_run(self.run_id)
        shown = dict(record.progress)
        if self._live:
            self._live.update(self._panel(shown, record.task_names))
            return
        line = tuple(shown.get(key) for key in ("phase", "task", "round"))
        if line != self._last_line and shown:
            self._last_line = line
            self.console.print(_line(shown, record.task_names), highlight=False, soft_wrap=True)

    def _panel(self, shown: Mapping[str, Any], task_names: tuple[str, ...]) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", justify="right")
        table.add_column()
        table.add_row("now", _where(shown, task_names))
        done, steps = shown.get("steps_done", 0), shown.get("steps", 0)
        if steps:
            table.add_row("steps", ProgressBar(total=steps, completed=done, width=40))
        if shown.get("clients_asked"):
            table.add_row("clients", f"{shown.get('clients_done', 0)} of {shown['clients_asked']}")
        if shown.get("loss") is not None:
            table.add_row("loss", f"{shown['loss']:.3f}")
        if shown.get("accuracy"):
            table.add_row("accuracy", _accuracies(shown["accuracy"], task_names))
        if "bytes_up" in shown:
            up, down = size(shown["bytes_up"]), size(shown["bytes_down"])
            table.add_row("bytes", f"{up} up, {down} down")
        table.add_row("time", f"{clock(time.monotonic() - self._started)}{self._eta(done, steps)}")
        return Group(table)

    def _eta(self, done: int, steps: int) -> str:
        if not done or not steps:
            return ""
        now = time.monotonic()
        first, since = self._first_step = self._first_step or (done, now)
        if done <= first:
            return ""
        return f", about {clock((now - since) / (done - first) * (steps - done))} to go"


_WITHOUT_ROUND: Final = {"evaluating": "scoring all tasks", "summing": "summing for the head"}
_BESIDES: Final = {"replaying": "replaying memories"}


def _where(shown: Mapping[str, Any], task_names: tuple[str, ...]) -> Text:
    task = shown.get("task")
    if task is None:
        return Text(str(shown.get("phase", "starting")))
    if task < 0:
        return Text("scoring the untrained model")
    name = task_names[task] if task < len(task_names) else ""
    stages = shown.get("stages")  # where clients do not all meet the same task at once
    of_all = f"stage {task + 1} of {stages}"
    text = of_all if stages else f"task {task + 1} of {len(task_names)} ({name})"
    phase = str(shown.get("phase"))
    if phase in _WITHOUT_ROUND:
        return Text(f"{text}, {_WITHOUT_ROUND[phase]}")
    text += f", round {shown.get('round', 0) + 1} of {shown.get('rounds_in_task', '?')}"
    return Text(text if phase == "training" else f"{text}, {_BESIDES.get(phase, phase)}")


def _accuracies(accuracy: list[float | None], task_names: tuple[str, ...]) -> Text:
    """Accuracy of each task learnt so far, coloured by how good it is."""
    text = Text()
    for name, value in zip(task_names, accuracy, strict=False):
        if value is None:
            continue
        style = "green" if value >= 0.8 else "yellow" if value >= 0.5 else "red"
        text.append(f"{name} ", style="dim").append(f"{value:.2f}  ", style=style)
    return text


def _line(shown: Mapping[str, Any], task_names: tuple[str, ...]) -> str:
    parts = [str(_where(shown, task_names))]
    if shown.get("loss") is not None:
        parts.append(f"loss {shown['loss']:.3f}")
    if math.isfinite(shown.get("acc") or math.nan):
        parts.append(f"ACC {shown['acc']:.3f}")
    if "bytes_up" in shown:
        parts.append(f"{size(shown['bytes_up'])} up, {size(shown['bytes_down'])} down")
    return " · ".join(parts)


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
