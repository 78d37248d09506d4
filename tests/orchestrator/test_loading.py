"""Loading many modules: the garbage collector rests meanwhile, and works again whatever happens."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from orchestrator.loading import loading


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_nothing_is_collected_while_modules_load() -> None:
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_was_loaded_is_not_looked_at_again() -> None:
    gc.collect()
    before = gc.get_freeze_count()
    with loading():
        kept = [[number] for number in range(1000)]
    assert gc.get_freeze_count() - before >= len(kept)


def test_collecting_goes_on_after_a_module_that_cannot_be_loaded() -> None:
    with pytest.raises(ModuleNotFoundError), loading():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()


def test_garbage_made_after_loading_is_still_collected() -> None:
    program = """
import gc, weakref
from orchestrator.loading import loading
with loading():
    import json
class Node: pass
node = Node(); node.itself = node; seen = weakref.ref(node)
del node
gc.collect()
assert seen() is None
"""
    subprocess.run([sys.executable, "-c", program], check=True)
