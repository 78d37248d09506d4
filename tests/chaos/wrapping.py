"""Puts the points into the modules of a process: into those it has, and into others on import."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tests.chaos.faults import Plan
from tests.chaos.pinned import PINNED_CALL, pinned
from tests.chaos.points import POINTS, Point

VARIABLE: Final = "PERENNIAL_TEST_CHAOS"
"""Environment: the folder of the plan that a process under test follows."""

_state: dict[str, Plan | None] = {"plan": None}
_wrapped: dict[str, list[tuple[Any, str, Any]]] = {}
_BY_CALL: Final = defaultdict[str, list[Point]](list)
for _point in POINTS.values():
    _BY_CALL[_point.call].append(_point)
_MODULES: Final = {call.partition(":")[0] for call in (*_BY_CALL, PINNED_CALL)}


def install() -> None:
    """Wrap every call of the table; nothing happens at a point until a plan is followed."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name in sorted(_MODULES & sys.modules.keys()):
        _wrap(sys.modules[name])


def uninstall() -> None:
    """Take every wrapper out again."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    for changes in _wrapped.values():
        for owner, name, original in reversed(changes):
            setattr(owner, name, original)
    _wrapped.clear()


def follow(plan: Plan | None) -> None:
    """From now on do what ``plan`` says in this process."""
    _state["plan"] = plan


@contextmanager
def following(plan: Plan) -> Iterator[Plan]:
    """Follow ``plan`` in this process for a while."""
    install()
    follow(plan)
    try:
        yield plan
    finally:
        follow(None)
        uninstall()


def install_from_environment() -> None:
    """What a process under test does as it starts (``site/sitecustomize.py``)."""
    if folder := os.environ.get(VARIABLE):
        install()
        follow(Plan.read(Path(folder)))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what others find, and wraps it once it is executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _MODULES:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find and finder is not self else None
            if spec and spec.loader:
                _wrap_after(spec.loader)
                return spec
        return None


def _wrap_after(loader: Any) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        _wrap(module)

    loader.exec_module = exec_module


def _wrap(module: ModuleType) -> None:
    if module.__name__ in _wrapped:
        return
    changes = _wrapped[module.__name__] = list[tuple[Any, str, Any]]()
    for call, points in _BY_CALL.items():
        if call.partition(":")[0] == module.__name__:
            changes += _replaced(module, call, functools.partial(_struck, points=points))
    if PINNED_CALL.partition(":")[0] == module.__name__:
        changes += _replaced(module, PINNED_CALL, pinned)


def _replaced(
    module: ModuleType, call: str, wrapping: Callable[[Any], Any]
) -> list[tuple[Any, str, Any]]:
    """Replace an attribute where it is, and a function wherever it was imported by name before.

    The owners, names and originals of all that were replaced.
    """
    *parents, name = call.partition(":")[2].split(".")
    owner = functools.reduce(getattr, parents, module)
    original = inspect.getattr_static(owner, name)
    if isinstance(original, classmethod):
        replacement: Any = classmethod(wrapping(original.__func__))
    else:
        replacement = wrapping(original)
    owners = [owner] if parents else [owner, *_importers(original, name, owner)]
    for each in owners:
        setattr(each, name, replacement)
    return [(each, name, original) for each in owners]


def _importers(original: Any, name: str, owner: Any) -> Iterator[ModuleType]:
    for module in list(sys.modules.values()):
        if module is not owner and getattr(module, "__dict__", {}).get(name) is original:
            yield module


def _struck(original: Callable[..., Any], *, points: list[Point]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        plan = _state["plan"]
        if plan is None:
            return original(*args, **kwargs)
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        here = [p for p in points if p.within is None or caller.startswith(p.within)]
        result = None
        for point in here:
            if point.when == "before" and (fault := plan.due(point.name)):
                plan.carry_out(fault, args, None)
        result = original(*args, **kwargs)
        for point in here:
            if point.when == "after" and (fault := plan.due(point.name)):
                result = plan.carry_out(fault, args, result)
        return result

    return call
