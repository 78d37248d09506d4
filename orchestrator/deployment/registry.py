"""The node keys a SuperLink admits: those that lie in a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.deployment.control import Control
from orchestrator.deployment.guard import Say
from orchestrator.deployment.keys import fingerprint, load_public_key, pem_of
from strategies.errors import PerennialError


@dataclass(slots=True)
class Registry:
    """The nodes a SuperLink admits are those whose public keys lie in ``folder``."""

    folder: Path
    control: Control
    say: Say
    _admitted: dict[Path, int] = field(default_factory=dict)
    _ignored: set[Path] = field(default_factory=set)

    def synchronise(self) -> None:
        """Admit keys that have come, and turn away those that are gone."""
        present = set(self.folder.glob("*.pub"))
        for path in sorted(present - self._admitted.keys() - self._ignored):
            self._admit(path)
        for path in sorted(self._admitted.keys() - present):
            self.control.unregister(self._admitted.pop(path))
            self.say(f"node {path.stem}: key withdrawn, no longer admitted")
        self._ignored &= present

    def _admit(self, path: Path) -> None:
        try:
            key = load_public_key(path)
            self._admitted[path] = self.control.register(pem_of(key), path.stem)
        except PerennialError as error:
            self._ignored.add(path)  # said once, not every two seconds
            self.say(f"node {path.stem}: not admitted: {error}")
        else:
            self.say(f"node {path.stem}: admitted by key {fingerprint(key)}")
