"""Trouble of the machine itself, told so that whoever runs it knows what to do."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Final

_REMEDIES: Final = {
    errno.ENOSPC: "free space there (`perennial gc` finds some)",
    errno.EDQUOT: "raise the quota or free space there (`perennial gc` finds some)",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it readable and writable for this user",
    errno.EPERM: "make it readable and writable for this user",
    errno.EIO: "look after the disk",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
}


def in_words(error: OSError, folder: Path) -> str:
    """What failed, where, how much is free there, and what to do; ``folder`` where it says none."""
    place = Path(error.filename) if isinstance(error.filename, str) else folder
    remedy = _REMEDIES.get(error.errno or 0, "mend that")
    what = error.strerror or str(error) or type(error).__name__
    return f"{what} at {place}{_free(place)}; {remedy}, then resume"


def _free(place: Path) -> str:
    there = next((each for each in (place, *place.parents) if each.exists()), place)
    try:
        return f" ({shutil.disk_usage(there).free} bytes free)"
    except OSError:
        return ""
