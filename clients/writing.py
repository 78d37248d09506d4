"""Files of a client's durable state: whole under their name or not there, and nothing left over."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from strategies.errors import DataError, PerennialError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_SUFFIX: Final = ".tmp"


class NoRoomError(PerennialError):
    """The disk cannot hold what a client must keep of a run."""


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` make a file, which is then called ``path``.

    What a killed process has left of such a file is removed: a client has one trainer at a time.
    Raises: NoRoomError if the disk is full, DataError if it refuses for another reason; ``path`` is
    as it was then.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in path.parent.glob(f"*{_SUFFIX}"):
            abandoned.unlink(missing_ok=True)
        write(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        full = not isinstance(error, OSError) or error.errno in _FULL
        raise (NoRoomError if full else DataError)(
            f"{path} cannot be written: {error}; free space there (`perennial gc --client` finds "
            "some), make it writable or use another state folder, then resume"
        ) from error
