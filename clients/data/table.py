"""The rows of one split, by column, that know where they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.catalog import nearest
from strategies.errors import DataError

# A cell may be anything a file format holds: text, number, list, picture.
Column = Sequence[Any] | NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Columns of equal length.

    ``origin`` is the file or data set; ``unit`` and ``numbers`` (n,) name a row as a person finds
    it, such as line 7.  ``names`` are all columns of the source, ``columns`` those asked for.
    ``declared`` holds the label sets the source itself declares, by column.
    """

    origin: str
    names: tuple[str, ...]
    columns: Mapping[str, Column]
    numbers: Sequence[int]
    unit: str = "row"
    declared: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.numbers):
            raise DataError(f"{self.origin}: found no rows, expected at least one example")

    def __len__(self) -> int:
        return len(self.numbers)

    def where(self, index: int) -> str:
        """Names a row for a person."""
        return f"{self.origin}, {self.unit} {self.numbers[index]}"

    def column(self, name: str) -> Column:
        """All cells of a column.

        Raises: DataError for a column that is not there or has an empty cell.
        """
        if name not in self.columns:
            found = ", ".join(self.names) or "none"
            hint = nearest(name, self.names) or "name the right one in the data section"
            raise DataError(f"{self.origin}: no column {name!r}; found {found}; {hint}")
        values = self.columns[name]
        if not isinstance(values, np.ndarray):
            empty = next((i for i, value in enumerate(values) if value is None), None)
            if empty is not None:
                raise DataError(
                    f"{self.where(empty)}: found no {name!r}, expected one in every {self.unit}; "
                    "add it or remove the example"
                )
        return values

    def texts(self, name: str) -> list[str]:
        """A column as text, (n,)."""
        return [str(value) for value in self.column(name)]

    def take(self, rows: NDArray[np.int64]) -> Table:
        """The table of these rows only."""
        columns = {
            name: values[rows] if isinstance(values, np.ndarray) else [values[i] for i in rows]
            for name, values in self.columns.items()
        }
        return Table(
            origin=self.origin,
            names=self.names,
            columns=columns,
            numbers=[self.numbers[i] for i in rows],
            unit=self.unit,
            declared=self.declared,
        )
