"""The run files that come with the package."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

from strategies.errors import ConfigError, Fault

if TYPE_CHECKING:
    from orchestrator.config import RunConfig

NAMES: Final = ("digits", "clinc150", "instruct", "rotated", "remember")


def example_text(name: str) -> str:
    """The run file ``examples/<name>.toml``, from the checkout or from the installed package.

    Raises: ConfigError naming the known examples.
    """
    if name not in NAMES:
        from strategies.catalog import nearest

        fault = Fault("example", repr(name), f"one of {', '.join(NAMES)}", nearest(name, NAMES))
        raise ConfigError("example", [fault])
    packaged = files("orchestrator") / "run_files" / f"{name}.toml"
    checkout = Path(__file__).parent.parent / "examples" / f"{name}.toml"
    source = packaged if packaged.is_file() else checkout
    return source.read_text(encoding="utf-8")


def example_config(name: str) -> RunConfig:
    """The example, validated."""
    from orchestrator.config import parse_config

    return parse_config(tomllib.loads(example_text(name)), source=f"examples/{name}.toml")
