"""Commands, parsed by the product's own parser."""

from __future__ import annotations

import pytest
import typer

from orchestrator.cli.app import app


def parse(line):
    """The command's name and what each of its options is.

    Raises: click's UsageError for an option that is none, or a value that is not one of its.
    Skips where the command, and leaves out options of metrics that, are not in this tree.
    """
    command, arguments, words = typer.main.get_command(app), list(line), []
    context = command.make_context("perennial", ["--help"], resilient_parsing=True)
    while hasattr(command, "commands"):
        word = arguments.pop(0)
        if word == "ui" and word not in command.commands:
            pytest.skip("`perennial ui` is not in this tree")
        command = command.commands[word]
        words.append(word)
    known = {option for each in command.params for option in each.opts}
    if "--metrics-port" not in known:
        arguments = [each for each in arguments if not each.startswith("--metrics-")]
    with command.make_context(words[-1], arguments, parent=context) as parsed:
        return " ".join(words), parsed.params
