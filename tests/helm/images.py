"""The Dockerfile, as far as tests look at it."""

from __future__ import annotations

from pathlib import Path

DOCKERFILE = Path(__file__).parents[2] / "deploy" / "docker" / "Dockerfile"
HEALTH = ["python", "-m", "orchestrator.deployment.health"]


def instructions() -> list[tuple[str, str]]:
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in lines if line and line[0] != "#")
    ]


def stages() -> dict[str, dict[str, str]]:
    """Stage -> instruction -> its last value, with what the stage builds on."""
    found: dict[str, dict[str, str]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = dict(found.get(base, {}))
        if name:
            found[name][word] = rest
    return found
