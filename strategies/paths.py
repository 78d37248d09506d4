"""Where both sides keep things when nobody says otherwise."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_data_path


def data_directory() -> Path:
    """``PERENNIAL_HOME``, else the platform's user data directory for perennial."""
    return Path(os.environ.get("PERENNIAL_HOME") or user_data_path("perennial")).absolute()
