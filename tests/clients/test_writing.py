"""A client's files appear whole or not at all, and leavings of killed processes go."""

from __future__ import annotations

import errno

import pytest

from clients.writing import NoRoomError, write_whole
from strategies.errors import DataError


def failing(code: int):
    def write(path):
        path.write_bytes(b"half")
        raise OSError(code, "in the way")

    return write


def test_a_file_takes_the_place_of_the_one_before_and_leavings_go(tmp_path):
    (tmp_path / "step-1.npz").write_bytes(b"old")
    (tmp_path / "step-1.npz.4711.tmp").write_bytes(b"of a killed process")
    write_whole(tmp_path / "step-1.npz", lambda path: path.write_bytes(b"new"))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"step-1.npz": b"new"}


def test_a_full_disk_is_named_and_the_file_stays_as_it_was(tmp_path):
    path = tmp_path / "step-1.npz"
    path.write_bytes(b"old")
    with pytest.raises(NoRoomError, match=r"step-1\.npz cannot be written.*free space there"):
        write_whole(path, failing(errno.ENOSPC))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"step-1.npz": b"old"}


def test_any_other_trouble_is_no_lack_of_room_and_named_as_well(tmp_path):
    with pytest.raises(DataError, match=r"step-1\.npz cannot be written: \[Errno 13\]"):
        write_whole(tmp_path / "step-1.npz", failing(errno.EACCES))
    assert not list(tmp_path.iterdir())
