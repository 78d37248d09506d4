"""What tests of real processes share."""

from __future__ import annotations

import pytest

from tests.e2e.federation import Loopback


@pytest.fixture
def loopback(tmp_path):
    """A federation on loopback, not yet started."""
    federation = Loopback(tmp_path)
    yield federation
    federation.end()
