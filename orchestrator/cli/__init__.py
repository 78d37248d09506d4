"""The ``perennial`` command."""

from __future__ import annotations

from orchestrator.cli.app import main

__all__ = ["main"]
