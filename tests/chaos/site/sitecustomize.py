"""On PYTHONPATH of a process under test: installs the points before anything else is imported."""

from __future__ import annotations

from tests.chaos.wrapping import install_from_environment

install_from_environment()
