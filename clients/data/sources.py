"""Where examples come from: scikit-learn's digits, files, Hugging Face data sets."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from clients.data.table import Table
from strategies.catalog import nearest
from strategies.errors import DataError
from strategies.recipe import DataRecipe
from strategies.rng import rng_for

if TYPE_CHECKING:
    import datasets

Split = Literal["train", "test"]
DIGITS_TEST_FRACTION: Final = 0.25


def read_source(
    recipe: DataRecipe, wanted: Collection[str], folder: Path | None
) -> tuple[Table, Table]:
    """Training and test rows, with the ``wanted`` columns as far as the source has them.

    Relative paths are looked up in ``folder``, else in the working directory.
    Raises: DataError for a source that is not there or cannot be read.
    """
    if recipe.source == "digits":
        return _digits()
    if recipe.source == "huggingface":
        return _hugging_face(recipe, wanted, folder)
    return (
        _file(recipe, "train", recipe.train, wanted, folder),
        _file(recipe, "test", recipe.test, wanted, folder),
    )


def _digits() -> tuple[Table, Table]:
    """1797 images (1, 8, 8) in [−1, 1], always cut into the same 75 % and 25 % of every class."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images.astype(np.float32) / 8 - 1)[:, None]
    labels = bunch.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=np.bool_)
    for label in range(10):
        rows = rng_for(0, "digits", label).permutation(np.flatnonzero(labels == label))
        is_test[rows[: round(len(rows) * DIGITS_TEST_FRACTION)]] = True
    everything = Table(
        origin="digits",
        names=("image", "label"),
        columns={"image": images, "label": labels},
        numbers=range(len(labels)),
        unit="image",
    )
    return everything.take(np.flatnonzero(~is_test)), everything.take(np.flatnonzero(is_test))


def _file(
    recipe: DataRecipe, split: Split, name: str | None, wanted: Collection[str], folder: Path | None
) -> Table:
    if name is None:
        raise DataError(f"data.{split}: found nothing, expected the path of a {recipe.source} file")
    path = _within(folder, name, f"data.{split}")
    if not path.is_file():
        raise DataError(
            f"data.{split}: no file at {path.absolute()}, expected a {recipe.source} file; "
            "correct the path (a relative one starts at the data folder or the working directory)"
        )
    read = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[recipe.source]
    try:
        return read(path, wanted)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, {error}; convert the file") from error


def _within(folder: Path | None, name: str, key: str) -> Path:
    """The path of ``name``; an operator who named a data folder opens nothing beside it.

    Raises: DataError for a path that leads out of the folder.
    """
    path = (folder or Path()) / name
    if folder is not None and not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"{key}: found {name!r}, expected a path inside this client's data folder {folder}; "
            "name the file relative to that folder"
        )
    return path


def _jsonl(path: Path, wanted: Collection[str]) -> Table:
    rows, numbers = list[dict[str, Any]](), list[int]()
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append(_json_object(line, f"{path}, line {number}"))
                numbers.append(number)
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names if name in wanted}
    return Table(origin=str(path), names=names, columns=columns, numbers=numbers, unit="line")


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error}); expected one object per line") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}, expected a JSON object")
    return row


def _csv(path: Path, wanted: Collection[str]) -> Table:
    """All cells are text: a label 01 stays 01."""
    rows, numbers = list[dict[str, str | None]](), list[int]()
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                rows.append(row)
                numbers.append(reader.line_num)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
        names = tuple(reader.fieldnames or ())
    columns = {name: [row[name] for row in rows] for name in names if name in wanted}
    return Table(origin=str(path), names=names, columns=columns, numbers=numbers, unit="line")


def _parquet(path: Path, wanted: Collection[str]) -> Table:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        names = tuple(pq.read_schema(path).names)
        table = pq.read_table(path, columns=[name for name in names if name in wanted])
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a parquet file ({error})") from error
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    num_rows = table.num_rows if columns else pq.read_metadata(path).num_rows
    return Table(origin=str(path), names=names, columns=columns, numbers=range(num_rows))


def _hugging_face(
    recipe: DataRecipe, wanted: Collection[str], folder: Path | None
) -> tuple[Table, Table]:
    if recipe.name is None:
        raise DataError("data.name: found nothing, expected a data set's hub name or path")
    splits = _load(recipe.name, recipe.subset, folder)
    train, test = recipe.train or "train", recipe.test or "test"
    return (
        _split(splits, recipe.name, train, wanted),
        _split(splits, recipe.name, test, wanted),
    )


def _load(name: str, subset: str | None, folder: Path | None) -> Mapping[str, datasets.Dataset]:
    """Code that comes with a data set is never run, as is the library's default."""
    import datasets

    path = (folder or Path()) / name
    if Path(name).is_absolute() or path.exists() or ".." in Path(name).parts:
        path = _within(folder, name, "data.name")
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(str(path) if path.exists() else name, subset)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"data.name: cannot load the data set {name!r} ({subset=}): {error}; "
            "expected a name on the hub, or a folder"
        ) from error
    if not isinstance(loaded, Mapping):
        raise DataError(f"data.name: {path} holds one split, expected a DatasetDict with several")
    return loaded


def _split(
    splits: Mapping[str, datasets.Dataset], origin: str, split: str, wanted: Collection[str]
) -> Table:
    import datasets

    if split not in splits:
        found, hint = ", ".join(splits), nearest(split, splits)
        raise DataError(f"{origin}: no split {split!r}; found {found}; {hint or 'set data.test'}")
    rows = splits[split]
    columns, declared = dict[str, list[Any]](), dict[str, tuple[str, ...]]()
    for name in (name for name in rows.column_names if name in wanted):
        feature, values = rows.features[name], list(rows[name])
        if isinstance(feature, datasets.ClassLabel):
            # The hub marks an unlabelled example with −1; to us that is an empty cell.
            names = declared[name] = tuple(feature.names)
            values = [None if v is None or v < 0 else names[v] for v in values]
        columns[name] = values
    return Table(
        origin=f"{origin}[{split}]",
        names=tuple(rows.column_names),
        columns=columns,
        numbers=range(len(rows)),
        declared=declared,
    )
