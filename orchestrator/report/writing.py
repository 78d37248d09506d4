"""How numbers and settings are written for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from markupsafe import Markup, escape

_NOTHING: Final = "–"
METRIC_NAMES: Final[Mapping[str, str]] = {
    "acc": "ACC, final mean accuracy",
    "aia": "AIA, average incremental accuracy",
    "bwt": "BWT, backward transfer",
    "fwt": "FWT, forward transfer",
    "forgetting": "forgetting",
    "learning_accuracy": "learning accuracy",
    "bytes_up": "sent up",
    "bytes_down": "sent down",
    "duration_seconds": "duration",
}
LOWER_IS_BETTER: Final = frozenset({"forgetting", "bytes_up", "bytes_down", "duration_seconds"})


def number(value: float | None) -> str:
    """Three digits, or a dash for what was not measured."""
    return _NOTHING if value is None else f"{value + 0.0:.3f}".replace("-", "−")


def error(value: float | None) -> str:
    """A relative error, which may be tiny."""
    return _NOTHING if value is None else f"{value:.2g}"


def percent(value: float | None) -> str:
    """A share in percent, or a dash for what was not measured."""
    return _NOTHING if value is None else f"{value:.1%}"


def size(count: float | None) -> str:
    """Bytes for people, in powers of 1000."""
    if count is None:
        return _NOTHING
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds, as far as they matter."""
    if seconds is None:
        return _NOTHING
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def cell(metric: str, value: float | None) -> str:
    """A value of the comparison in its own unit."""
    if metric.startswith("bytes"):
        return size(value)
    return duration(value) if metric.endswith("seconds") else number(value)


def breakable(name: str) -> Markup:
    """A name that may break after an underscore, a dot or a slash."""
    return Markup(re.sub(r"([_./])", r"\1<wbr>", str(escape(name))))  # noqa: S704 - escaped


def shade(percent: float) -> str:
    """The class of a shaded cell, in twenty steps."""
    return f"s{round(min(max(percent, 0), 100) / 5)}"


def setting(value: Any) -> str:
    """A value of the run file as it would stand there; a dash for a key that is not set."""
    if value is None:
        return _NOTHING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
