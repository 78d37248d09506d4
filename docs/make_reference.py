"""Write docs/reference/ from the code, by `python docs/make_reference.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from orchestrator.cli.app import app
from orchestrator.config import config_schema
from orchestrator.entries import catalog_entries

HERE = Path(__file__).parent / "reference"
MADE = "*Written by `python docs/make_reference.py`; do not edit.*"


def pages() -> dict[str, str]:
    """File name -> content."""
    return {
        "commands.md": "\n".join(_commands()) + "\n",
        "run-file.md": "\n".join(_run_file()) + "\n",
        "catalog.md": "\n".join(_catalog()) + "\n",
    }


def _commands() -> Iterator[str]:
    yield from ("# Commands", "", MADE)
    group = typer.main.get_command(app)
    for name, command in sorted(_leaves(group, "perennial")):
        yield from ("", f"## `{name}`", "", _words(command.help or ""), "")
        shown = [each for each in command.params if not getattr(each, "hidden", False)]
        rows = [row for each in shown if (row := _parameter(each))]
        if rows:
            yield from ("| | default | |", "|---|---|---|", *rows)


def _leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:  # Any: click's or typer's own
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, each in command.commands.items():
        yield from _leaves(each, f"{name} {word}")


def _parameter(parameter: Any) -> str | None:
    if parameter.name == "help":
        return None
    name = (
        ", ".join(parameter.opts) if parameter.opts[0].startswith("-") else parameter.name.upper()
    )
    default = "" if parameter.default in (None, False, []) else f"`{parameter.default}`"
    if parameter.required:
        default = "required"
    return f"| `{name}` | {default} | {_cell(parameter.help or '')} |"


def _run_file() -> Iterator[str]:
    schema = config_schema()
    yield from (
        "# Run file",
        "",
        MADE,
        "",
        "`perennial config schema` prints the same as JSON Schema.",
    )
    yield from _section("the top of the file", schema)
    for name in sorted(schema["$defs"]):
        yield from _section(name, schema["$defs"][name])


def _section(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    if "properties" not in schema:
        return
    yield from ("", f"## {name}", "", _words(schema.get("description", "")), "")
    yield from ("| key | type | default |", "|---|---|---|")
    for key, value in schema["properties"].items():
        default = "required" if key in schema.get("required", ()) else ""
        if "default" in value and "$ref" not in value:  # a section's defaults are in the section
            default = f"`{json.dumps(value['default'])}`"
        yield f"| `{key}` | {_cell(_type(value))} | {_cell(default)} |"


def _type(value: Mapping[str, Any]) -> str:
    """A type in words, with its range."""
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in value:
        return " or ".join(_type(each) for each in value["anyOf"])
    if "enum" in value or "const" in value:
        return ", ".join(f"`{each}`" for each in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return f"list of {_type(value.get('items', {}))}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {value[key]:g}" for key, sign in signs.items() if key in value]
    return " ".join([str(value.get("type", "anything")), *bounds])


def _catalog() -> Iterator[str]:
    yield from (
        "# Catalog",
        "",
        MADE,
        "",
        "What each is good for is in [Strategies](../strategies.md).",
    )
    entries = catalog_entries()
    for kind in dict.fromkeys(entry["kind"] for entry in entries):
        yield from ("", f"## {kind}", "", "| name | what it does | parameters |", "|---|---|---|")
        for entry in (each for each in entries if each["kind"] == kind):
            given = ", ".join(f"`{k} = {json.dumps(v)}`" for k, v in entry["parameters"].items())
            yield f"| `{entry['name']}` | {_cell(entry['summary'])} | {_cell(given)} |"


def _words(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _cell(text: str) -> str:
    return _words(text).replace("|", "\\|")


def main() -> None:
    """Write the pages."""
    HERE.mkdir(exist_ok=True)
    for name, content in pages().items():
        (HERE / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
