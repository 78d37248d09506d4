"""What the suite found, and what it can find, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.cases import CASES, Case, Figure


def listing(cases: Mapping[str, Case]) -> str:
    """Every case, its minutes, its peer, and what each number means."""
    return "\n\n".join(
        "\n".join(
            [
                f"{name}: {case.measures}",
                f"  about {case.minutes:g} min; peer: {case.peer or 'none'}",
                *(f"  {f.name}: {f.meaning}{_wanted(f)}" for f in case.figures),
            ]
        )
        for name, case in cases.items()
    )


def _wanted(figure: Figure) -> str:
    return f" (target {figure.target})" if figure.target else ""


def as_markdown(results: Mapping[str, Any]) -> str:
    """Where the figures come from, one row per figure, and what failed."""
    machine, versions = results["machine"], results["versions"]
    where = (
        f"{machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.1f} GiB, {machine['system']}; load {machine['load']:g} "
        "at the start"
    )
    packages = ", ".join(f"{name} {value}" for name, value in versions.items() if value)
    head = ["# Benchmarks", "", f"{results['at']}: {where}.", "", f"{packages}.", ""]
    rows = _table(("case", "figure", "value", "target", "", "meaning"), _rows(results["cases"]))
    return "\n".join([*head, *rows, *_runs(results["cases"])]) + "\n"


def _rows(found: Mapping[str, Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for name, outcome in found.items():
        for figure in CASES[name].figures:
            value = figure.of(outcome.get("result", {}))
            yield (
                name,
                figure.name,
                _shown(value),
                figure.target,
                _judged(figure, value),
                (figure.meaning),
            )


def _judged(figure: Figure, value: float | None) -> str:
    met = None if value is None else figure.met(value)
    return {True: "met", False: "**missed**", None: ""}[met]


def _shown(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _runs(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Seconds, seeds and command of every case; of one that failed the end of its log."""
    yield ""
    yield from _table(
        ("case", "seconds", "seeds", "command"),
        (
            (name, f"{x['seconds']:.0f}", _seeds(x), f"`python {' '.join(x['command'])}`")
            for name, x in found.items()
        ),
    )
    for name, outcome in found.items():
        if "failed" in outcome:
            yield from ("", f"**{name} failed** ({outcome['failed']}):", "", "```text")
            yield from outcome["end_of_log"]
            yield "```"


def _seeds(outcome: Mapping[str, Any]) -> str:
    result = outcome.get("result", {})
    return ", ".join(map(str, result.get("seeds", [result.get("seed", "")])))


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
