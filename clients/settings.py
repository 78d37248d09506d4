"""What a client's own operator decides, and the file it is handed over in; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from annotated_types import Ge, Gt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from strategies.errors import ConfigError, Fault
from strategies.recipe import DataRecipe

MAX_MESSAGE_BYTES: Final = 8 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What the client's own operator decides.

    ``data``, if given, replaces the data section of whatever recipe the server sends: the server
    never chooses which files are read here.  Simulated clients leave it out.
    ``kind`` is what the device is to count as, None for a simulated client (a warm trainer takes
    it for ``"auto"``); ``"cpu"`` leaves a GPU alone.  ``memory_limit_bytes`` is the most training
    may take, the program included, and ``uplink_limit_bytes_per_second`` what plans may count on;
    the line itself is not throttled.
    ``max_message_bytes`` is the largest message a warm trainer makes room for.
    """

    __pydantic_config__: ClassVar[Any] = ConfigDict(extra="forbid")  # Any: pydantic's own

    cache_folder: Path
    state_folder: Path
    data_folder: Path | None = None
    data: DataRecipe | None = None
    num_threads: Annotated[int, Ge(1)] = 1
    kind: Literal["auto", "edge", "gpu", "cpu"] | None = None
    memory_limit_bytes: Annotated[int, Ge(1)] | None = None
    uplink_limit_bytes_per_second: Annotated[float, Gt(0)] | None = None
    max_message_bytes: Annotated[int, Ge(1)] = MAX_MESSAGE_BYTES


def settings_json(settings: ClientSettings) -> str:
    """The settings as JSON, which ``read_settings`` reads back."""
    return TypeAdapter(ClientSettings).dump_json(settings, indent=2).decode()


def read_settings(path: Path) -> ClientSettings:
    """The settings in a JSON file.

    Raises: ConfigError if there is no such file, or naming every field that cannot be used.
    """
    try:
        return TypeAdapter(ClientSettings).validate_json(path.read_bytes())
    except OSError as error:
        fault = Fault("settings", str(error.strerror), "a JSON file that can be read")
        raise ConfigError(str(path), [fault]) from None
    except ValidationError as error:
        faults = [
            Fault(".".join(map(str, e["loc"])) or "settings", f"{e['input']!r:.80}", e["msg"])
            for e in error.errors()
        ]
        raise ConfigError(str(path), faults) from None
