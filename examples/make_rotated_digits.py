"""Write a domain-incremental stream of images: the same ten digits, turned further task by task.

Columns: image (8 rows of 8 integers, 0..255), label, rotation.  Every rotation has all of
scikit-learn's bundled digits; a digit that is held out at one angle is held out at all.

    python examples/make_rotated_digits.py --to data/rotated
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

TEST_SHARE = 0.25


def main() -> None:
    """Write train.jsonl and test.jsonl."""
    arguments = _arguments()
    bunch = load_digits()
    held_out = np.random.default_rng(arguments.seed).random(len(bunch.target)) < TEST_SHARE
    arguments.to.mkdir(parents=True, exist_ok=True)
    for split, chosen in (("train", ~held_out), ("test", held_out)):
        rows = [
            {"image": turned(image, angle), "label": str(label), "rotation": f"{angle}°"}
            for angle in arguments.angles
            for image, label in zip(bunch.images[chosen], bunch.target[chosen], strict=True)
        ]
        path = arguments.to / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows)} images at {len(arguments.angles)} angles")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write digits at growing angles.")
    parser.add_argument("--to", type=Path, default=Path("data/rotated"), help="folder to write to")
    parser.add_argument("--angles", type=int, nargs="+", default=[0, 35, 70, 105, 140])
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def turned(image: NDArray[np.float64], angle: int) -> list[list[int]]:
    """A digit (8, 8) of 0..16, turned by ``angle`` degrees, as pixels of 0..255."""
    pixels = rotate(image, angle, reshape=False, order=1) * (255 / 16)
    return np.clip(np.rint(pixels), 0, 255).astype(int).tolist()  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
