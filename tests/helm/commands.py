"""Commands, parsed by the product's own parser."""

from __future__ import annotations

import typer

from orchestrator.cli.app import app


def parse(line):
    """The command's name and what each of its options is.

    Raises: click's UsageError for an option that is none, or a value that is not one of its.
    """
    command, arguments, words = typer.main.get_command(app), list(line), []
    context = command.make_context("perennial", ["--help"], resilient_parsing=True)
    while hasattr(command, "commands"):
        word = arguments.pop(0)
        command = command.commands[word]
        words.append(word)
    with command.make_context(words[-1], arguments, parent=context) as parsed:
        return " ".join(words), parsed.params
