"""A run's configuration, key by key, with what differs from the defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from orchestrator.config import parse_config
from orchestrator.summary import flattened
from strategies.errors import ConfigError


class Setting(TypedDict):
    """A key of the run file.

    ``default`` is null too where a key has none; ``differs`` is null where it is not known, as in a
    run of a version that had other keys.
    """

    key: str
    value: Any
    default: Any
    differs: bool | None


def settings_of(config: Mapping[str, Any]) -> list[Setting]:
    """Every key of a run's configuration, in its order."""
    try:
        known = dict(_defaults(parse_config(config)))
    except ConfigError:
        return [Setting(key=k, value=v, default=None, differs=None) for k, v in flattened(config)]
    return [
        Setting(
            key=key,
            value=value,
            default=known.get(key),
            differs=key not in known or known[key] != value,
        )
        for key, value in flattened(config)
    ]


def _defaults(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Defaults by dotted key; keys that must be given are left out."""
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}{name}"
        default = field.get_default(call_default_factory=True, validated_data={})
        if default is not PydanticUndefined:
            yield from flattened(_plain(default), key)
        elif isinstance(value, BaseModel):
            yield from _defaults(value, f"{key}.")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
