"""Reading examples, and saying what is wrong with them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clients.data.images import read_images
from clients.data.sources import read_source
from clients.data.table import Table
from strategies.errors import DataError
from strategies.recipe import DataRecipe
from tests.clients.data_recipes import FILES, animal_rows, write_animals, write_jsonl

WANTED = ("text", "label")


def _write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label", "farm"])
        writer.writeheader()
        writer.writerows(rows)


def test_digits_are_split_by_class_and_scaled() -> None:
    train, test = read_source(DataRecipe(source="digits"), ("image", "label"), None)
    assert (len(train), len(test)) == (1347, 450)
    images = np.concatenate([read_images(t, "image") for t in (train, test)])
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (-1, 1)
    held_out = np.bincount(np.array(test.column("label")))
    everything = held_out + np.bincount(np.array(train.column("label")))
    assert np.abs(held_out - everything / 4).max() <= 0.5
    assert not set(train.numbers) & set(test.numbers)


@pytest.mark.parametrize("source", ["jsonl", "csv", "parquet"])
def test_files_of_every_format_read_alike(source: str, tmp_path: Path) -> None:
    rows = animal_rows(5)
    rows[2]["text"] = 'with "quotes", comma\nand line break'
    rows[3]["label"] = "007"
    if source == "jsonl":
        write_jsonl(tmp_path / "train.jsonl", rows)
        write_jsonl(tmp_path / "test.jsonl", rows[:1])
    elif source == "csv":
        _write_csv(tmp_path / "train.csv", rows)
        _write_csv(tmp_path / "test.csv", rows[:1])
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
        pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "test.parquet")
    recipe = DataRecipe.model_validate(
        {"source": source, "train": f"train.{source}", "test": f"test.{source}"}
    )
    train, test = read_source(recipe, WANTED, tmp_path)
    assert train.texts("text") == [row["text"] for row in rows]
    assert train.texts("label") == [row["label"] for row in rows]
    assert len(test) == 1
    assert train.names == ("text", "label", "farm")


def test_a_hugging_face_folder_gives_its_label_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(tmp_path / "saved"))
    recipe = DataRecipe(source="huggingface", name="saved", test="validation")
    train, test = read_source(recipe, WANTED, tmp_path)
    assert train.texts("label") == test.texts("label") == ["yes", "no"]
    assert train.declared == {"label": ("no", "yes")}
    with pytest.raises(DataError, match=r"no split 'test'; found train, validation"):
        read_source(DataRecipe(source="huggingface", name="saved"), WANTED, tmp_path)


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DataError, match=r"data\.name: cannot load the data set 'hollow'"):
        read_source(DataRecipe(source="huggingface", name="hollow"), WANTED, tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train: no file at .*train\.jsonl"):
        read_source(FILES, WANTED, tmp_path)


def test_a_file_that_is_not_given_is_asked_for(tmp_path: Path) -> None:
    write_animals(tmp_path)
    with pytest.raises(DataError, match=r"data\.test: found nothing, expected the path"):
        read_source(FILES.model_copy(update={"test": None}), WANTED, tmp_path)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(content: str, tmp_path: Path) -> None:
    write_animals(tmp_path)
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"train\.jsonl: found no rows"):
        read_source(FILES, WANTED, tmp_path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [("{broken", "line 3: not JSON"), ("[1]", "line 3: found list"), ('"x"', "line 3: found str")],
)
def test_a_bad_line_is_named_by_number(line: str, complaint: str, tmp_path: Path) -> None:
    write_animals(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "cat"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=complaint):
        read_source(FILES, WANTED, tmp_path)


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    write_animals(tmp_path)
    (tmp_path / "test.jsonl").write_bytes('{"text": "é"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"test\.jsonl: expected UTF-8"):
        read_source(FILES, WANTED, tmp_path)


def test_a_missing_column_suggests_the_nearest(tmp_path: Path) -> None:
    write_animals(tmp_path)
    train, _ = read_source(FILES, WANTED, tmp_path)
    with pytest.raises(
        DataError, match=r"no column 'labels'; found text, label, farm; did you mean"
    ):
        train.column("labels")


def test_an_empty_cell_is_named(tmp_path: Path) -> None:
    write_animals(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "cat"}\n{"text": "b"}\n')
    train, _ = read_source(FILES, WANTED, tmp_path)
    with pytest.raises(DataError, match=r"line 2: found no 'label'"):
        train.column("label")


def _pictures(cells: list[object]) -> Table:
    return Table(origin="p", names=("image",), columns={"image": cells}, numbers=range(len(cells)))


def test_lists_of_integers_are_pixels_and_of_floats_are_values() -> None:
    pixels = read_images(_pictures([[[0, 255], [255, 0]]]), "image")
    assert pixels.tolist() == [[[[-1, 1], [1, -1]]]]
    values = read_images(_pictures([[[[0.5, -2.0]]] * 3]), "image")
    assert values.shape == (1, 3, 1, 2)
    assert values[0, 0].tolist() == [[0.5, -2.0]]


def test_pictures_become_scaled_arrays() -> None:
    pil = pytest.importorskip("PIL.Image")
    grey, colour = pil.new("L", (3, 2), 255), pil.new("RGB", (3, 2), (255, 0, 0))
    buffer = io.BytesIO()
    colour.save(buffer, "PNG")
    images = read_images(_pictures([grey, colour, {"bytes": buffer.getvalue()}]), "image")
    assert images.shape == (3, 3, 2, 3)
    assert images[0].min() == 1
    assert images[1, :, 0, 0].tolist() == images[2, :, 0, 0].tolist() == [1, -1, -1]


@pytest.mark.parametrize("cell", ["x", 3, [1, 2], [[1, 2], [3]]])
def test_what_is_no_picture_is_named(cell: object) -> None:
    with pytest.raises(DataError, match="p, row 1: expected a picture"):
        read_images(_pictures([[[1]], cell]), "image")


def test_pictures_of_different_sizes_are_named() -> None:
    with pytest.raises(
        DataError, match=r"p, row 1: image of shape \(1, 1, 2\), expected \(1, 1, 1\)"
    ):
        read_images(_pictures([[[1]], [[1, 2]]]), "image")


@pytest.mark.parametrize("name", ["../secret.jsonl", "/etc/passwd", "sub/../../secret.jsonl"])
def test_a_client_reads_inside_its_data_folder_alone(tmp_path, name):
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.jsonl").write_text('{"text": "x", "label": "y"}\n')
    recipe = DataRecipe(source="jsonl", train=name, test=name)
    with pytest.raises(DataError, match="inside this client's data folder"):
        read_source(recipe, ("text", "label"), folder)


def test_a_link_out_of_the_data_folder_is_not_followed(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.jsonl").write_text('{"text": "x", "label": "y"}\n')
    (folder / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(DataError, match="inside this client's data folder"):
        read_source(
            DataRecipe(source="jsonl", train="link.jsonl", test="link.jsonl"), ("text",), folder
        )
