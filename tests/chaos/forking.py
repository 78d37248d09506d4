"""Work in forks of a process that has imported everything and started nothing."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def forked(work: Callable[[], Any], log: Path | None = None) -> Any:
    """The result of ``work``, done in a child, as JSON gives it back; None if it was killed.

    Raises: ChildProcessError with its output if it ended in any other way.
    """
    pid, reading = _start(work, log)
    return _result(pid, reading, log)


def in_parallel(jobs: int, works: Iterable[T], do: Callable[[T], Any]) -> Iterator[tuple[T, Any]]:
    """Each of ``works`` with its result, ``jobs`` children at a time, in order of their start."""
    under_way = list[tuple[T, int, int]]()
    for work in works:
        while len(under_way) >= jobs:
            first, pid, reading = under_way.pop(0)
            yield first, _result(pid, reading, None)
        under_way.append((work, *_start(lambda work=work: do(work), None)))
    for work, pid, reading in under_way:
        yield work, _result(pid, reading, None)


def warm(modules: Sequence[str]) -> None:
    """Import what a child needed, so that later ones have it; what cannot be is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules:
            if name not in sys.modules and not name.startswith(("tests.", "__")):
                try:
                    importlib.import_module(name)
                except Exception:  # noqa: BLE001 S112 - made up at run time by its package
                    continue


def _start(work: Callable[[], Any], log: Path | None) -> tuple[int, int]:
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about threads, of which none holds a lock
        pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    os.close(reading)
    code = 1
    try:
        if log is not None:
            _redirect(log)
        result = json.dumps(work()).encode()
        while result:
            result = result[os.write(writing, result) :]
        code = 0
    except BaseException:  # noqa: BLE001 - the boundary of a process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def _result(pid: int, reading: int, log: Path | None) -> Any:
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return json.loads(text)
    if code < 0:
        return None
    said = log.read_text(errors="replace")[-3000:] if log and log.exists() else ""
    raise ChildProcessError(f"a child ended with code {code}\n{said}")


def stopwatch() -> Callable[[], float]:
    """Seconds since this call."""
    start = time.monotonic()
    return lambda: time.monotonic() - start
