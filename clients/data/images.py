"""Pictures as arrays."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clients.data.table import Table
from strategies.errors import DataError

if TYPE_CHECKING:
    from PIL import Image


def read_images(table: Table, column: str) -> NDArray[np.float32]:
    """The column's images, (n, c, h, w).

    Pixels of PIL images, of encoded files and of integer lists are 0..255 and become [−1, 1]; lists
    of floats are taken as they are.  Lists are (h, w) or (c, h, w).
    Raises: DataError where there is no image or sizes differ.
    """
    cells = table.column(column)
    if isinstance(cells, np.ndarray) and cells.ndim == 4:
        return cells.astype(np.float32)
    images = [_read(cell, table.where(index)) for index, cell in enumerate(cells)]
    if any(image.shape[0] == 3 for image in images):  # grey among coloured ones
        images = [np.repeat(i, 3, axis=0) if i.shape[0] == 1 else i for i in images]
    for index, image in enumerate(images):
        if image.shape != images[0].shape:
            raise DataError(
                f"{table.where(index)}: image of shape {image.shape}, "
                f"expected {images[0].shape} as in {table.where(0)}; "
                "bring all images to one size first"
            )
    return np.stack(images)


def _read(cell: Any, where: str) -> NDArray[np.float32]:  # Any: whatever a file may hold
    """One image, (c, h, w)."""
    if isinstance(cell, dict):  # how the hub's parquet files hold pictures
        cell = cell.get("bytes")
    if isinstance(cell, bytes):
        cell = _opened(cell, where)
    if hasattr(cell, "convert"):  # a PIL image; the library is loaded only where there is one
        return _pixels(cell)
    try:
        values = np.asarray(cell)
    except ValueError:  # rows of different lengths
        values = np.zeros(0)
    if values.ndim not in {2, 3} or values.dtype.kind not in "iuf" or not values.size:
        raise DataError(f"{where}: expected a picture or numbers (h, w) or (c, h, w)")
    image = np.asarray(values[None] if values.ndim == 2 else values, dtype=np.float32)
    return image if values.dtype.kind == "f" else _scaled(image)


def _scaled(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    return pixels / np.float32(127.5) - np.float32(1)


def _opened(encoded: bytes, where: str) -> Image.Image:
    from PIL import Image

    try:
        return Image.open(io.BytesIO(encoded))
    except OSError as error:
        raise DataError(f"{where}: not a picture ({error})") from error


def _pixels(picture: Image.Image) -> NDArray[np.float32]:
    array = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"), dtype=np.float32)
    image = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)  # (c, h, w)
    return _scaled(np.ascontiguousarray(image))
