"""Hostile messages: nothing crashes, nothing invalid is taken, nothing large is allocated."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import tracemalloc
from importlib.util import find_spec

import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.framing import CHUNK_BYTES, FramingError, cut, joined
from strategies import limits
from strategies.compression.chain import decompress
from strategies.compression.int8 import Int8
from strategies.compression.topk import TopK
from strategies.errors import WireError
from strategies.types import HEAD, ParamKey
from strategies.wire import (
    decode_assignment,
    decode_profile,
    decode_recipe,
    decode_result,
    from_record,
    to_record,
)
from tests.conftest import REPOSITORY
from tests.fuzz import oracle, targets
from tests.fuzz.cases import CASES, PROFILES
from tests.fuzz.mutation import closed, opened, spoilt
from tests.fuzz.running import fuzzed

SEEDS = st.integers(0, 2**64 - 1)


def clean(tally: targets.Tally) -> None:
    assert tally.crashes == []
    assert tally.accepted_invalid == []
    assert tally.refused_valid == []
    assert tally.over_limit == 0


def test_every_honest_message_is_valid_and_taken():
    targets.warm_up()


@settings(max_examples=150)
@given(seed=SEEDS)
def test_nearly_valid_messages_are_judged_as_a_second_reader_judges_them(seed):
    tally = targets.Tally()
    targets.one(tally, random.Random(seed))  # noqa: S311 - no secrets
    clean(tally)


@settings(max_examples=150)
@given(case=st.sampled_from(CASES), noise=st.binary(max_size=300), at=st.integers(0, 5000))
def test_arbitrary_bytes_and_bytes_put_into_a_message(case, noise, at):
    tally, message = targets.Tally(), case.message
    targets.update(tally, case, noise)
    targets.update(tally, case, message[: at % len(message)] + noise)
    spliced = bytearray(message)
    spliced[at % len(message) :][: len(noise)] = noise
    targets.update(tally, case, bytes(spliced))
    clean(tally)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150)
@given(case=st.sampled_from(CASES), value=JSON, data=st.data())
def test_any_json_in_the_place_of_any_field(case, value, data):
    table, header, tensors = opened(case.message)
    field = data.draw(st.sampled_from(sorted(header["body"])))
    header["body"][field] = value
    tally = targets.Tally()
    targets.update(tally, case, closed(table, header, tensors))
    clean(tally)


@pytest.mark.slow
def test_thousands_of_inputs():
    report = fuzzed(8_000, seed=11)
    assert report["inputs"] == 8_000
    for name in ("crashes", "accepted_invalid", "refused_valid", "over_limit"):
        assert report[name] == 0, report["examples"]
    assert 0 < report["peak_allocated_bytes"] < report["limit_bytes"]
    assert report["resident_growth_bytes"] < 256 * 2**20


@pytest.mark.slow
def test_the_program_reports_in_json():
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "300", "--json", "-"]
    if find_spec("atheris"):
        command += ["--guided", "500"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert {
        "inputs", "crashes", "accepted_invalid", "peak_allocated_bytes", "limit_bytes", "seconds",
    } <= report.keys()  # fmt: skip
    assert report["crashes"] == report["accepted_invalid"] == 0
    if find_spec("atheris"):
        assert report["guided"]["inputs"] >= 500


def test_the_second_reader_would_notice_a_careless_one():
    """Of spoilt messages it calls most invalid, and of honest ones none."""
    rng, case = random.Random(1), CASES[0]  # noqa: S311 - no secrets
    spoiled = [spoilt(case.message, targets.EVERYTHING, rng) for _ in range(200)]
    assert sum(bool(oracle.verdict(message, case)) for message in spoiled) > 100
    assert not any(oracle.verdict(c.message, c) for c in CASES)


# What was found, kept: each of these once crashed something or was taken.


def framed(body: object, *, kind: object = "update", table: dict | None = None) -> bytes:
    return closed(table or {}, {"version": "1", "kind": kind, "body": body}, b"")


FOUND = {
    "a request without groups": framed({"recipe": "{}"}, kind="recipe"),
    "a request that is no object": framed([1, 2], kind="recipe"),
    "groups that are a number": framed({"recipe": "{}", "groups": 3}, kind="recipe"),
    "a number too large for a float": framed({"client_id": "c", "memory_bytes": 10**400}),
    "a header that is a number": closed({}, 3, b""),
    "a header that is null": closed({}, None, b""),
    "a body of pairs": framed([["assignment_id", "a"]]),
    "a kind that is a list": framed({}, kind=["update"]),
    "a surrogate": framed({"assignment_id": "\ud800", "client_id": "c", "plan_hash": "p"}),
    "deep nesting": framed(json.loads("[" * 200 + "]" * 200)),
    "no table": struct.pack("<Q", 2) + b"[]",
    "a digit that is none": framed(
        {"assignment_id": "a", "client_id": "c", "plan_hash": "p"},
        table={"g|p#².values": {"dtype": "F32", "shape": [0], "data_offsets": [0, 1]}},
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_once_crashed_is_refused(name):
    for decode in (decode_result, decode_assignment, decode_profile, decode_recipe):
        with pytest.raises(WireError, match=r"."):
            decode(FOUND[name])


@pytest.mark.parametrize(
    "part", ["p#².values", "p#٣.values", "p#1.values", "p#00.values", "p#0.junk", "p#", "p"]
)
def test_compressed_parts_of_no_stage_are_refused(part):
    key, shapes = ParamKey(HEAD, "p"), {ParamKey(HEAD, "p"): (2, 2)}
    good = {
        ParamKey(HEAD, "p#0.values"): np.zeros((2, 2), np.int8),
        ParamKey(HEAD, "p#0.scale"): np.ones((2, 1), np.float32),
    }
    assert decompress(good, (Int8(),), shapes)[key].shape == (2, 2)
    with pytest.raises(WireError):
        decompress(good | {ParamKey(HEAD, part): np.zeros(2, np.float32)}, (Int8(),), shapes)


def peak_of(action) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def entry(shape, size=10, dtype="F32"):
    return {"x|y": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}


@pytest.mark.parametrize(
    "message",
    [
        closed(entry([10**12]), {"version": "1", "kind": "update", "body": {}}, b"0123456789"),
        closed(entry([2**31, 2**31, 2**31]), {"version": "1", "kind": "update", "body": {}}, b"x"),
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        framed({}, table={f"g{i}|p": None for i in range(70_000)}),
        struct.pack("<Q", 6 * 2**20) + b"[" * (6 * 2**20),
        framed({"assignment_id": "[]," * 10**6}),
        framed([[] for _ in range(500_000)]),
    ],
    ids=["1e12 values", "2**93 values", "no header", "longest", "many tensors", "brackets",
         "long text", "many lists"],
)  # fmt: skip
def test_what_is_announced_is_not_allocated(message):
    targets.warm_up()

    def read() -> None:
        with pytest.raises(WireError):
            decode_result(message)

    assert peak_of(read) < targets.allowance(message)
    assert targets.allowance(message) < limits.SMALL_CHANGE_BYTES + 66 * len(message) + 2**20


def test_decompression_makes_no_more_than_was_planned():
    key, shape = ParamKey(HEAD, "weight"), (64, 64)
    sparse = {
        ParamKey(HEAD, "weight#0.index"): np.array([2**32 - 1], np.uint32),
        ParamKey(HEAD, "weight#0.values"): np.ones(1, np.float32),
    }

    def sparse_one() -> None:
        with pytest.raises(WireError, match="place 4294967295"):
            decompress(sparse, (TopK(),), {key: shape})

    def scaled_one() -> None:
        encoded = {
            ParamKey(HEAD, "weight#0.values"): np.zeros((1, 1), np.int8),
            ParamKey(HEAD, "weight#0.scale"): np.zeros((10**5, 1), np.float32),
        }
        with pytest.raises(WireError):
            decompress(encoded, (Int8(),), {key: shape})

    for action in (sparse_one, scaled_one):
        assert peak_of(action) < 16 * 4 * 64 * 64 + 2**19


def test_frames_make_room_for_what_comes_and_not_for_what_is_announced():
    def announced() -> None:
        with pytest.raises(FramingError, match="10 bytes of"):
            joined(2**38, iter([b"0123456789"]), limit_bytes=2**40)

    assert peak_of(announced) < 2**20
    message = np.random.default_rng(0).bytes(5 * CHUNK_BYTES + 7)
    whole: list[bytes] = []

    def real() -> None:
        whole.append(joined(len(message), cut(message), limit_bytes=len(message)))

    assert peak_of(real) < 1.5 * len(message) + 2 * CHUNK_BYTES
    assert whole == [message]
    with pytest.raises(FramingError, match="empty chunk"):
        joined(2, iter([b"", b"ab"]), limit_bytes=9)


def test_flower_records_of_others_are_refused():
    message = PROFILES[0]
    good = to_record(message)
    assert from_record(good) == message
    array = FlowerArray(dtype="uint8", shape=(3,), stype="numpy.ndarray", data=b"\x80\x04N")
    strangers = [
        RecordDict(),
        RecordDict({"message": ConfigRecord({"bytes": b"x"})}),
        RecordDict({"message": ArrayRecord({"bytes": array})}),
        RecordDict({"message": ArrayRecord({"other": array})}),
        RecordDict({**good, "more": ConfigRecord({"x": 1})}),
    ]
    for record in strangers:
        with pytest.raises(WireError, match="Flower record holds"):
            from_record(record)


@pytest.mark.parametrize(
    "text", ["a\nb", "\x1b]0;x\x07", "a\u2028b", "\u202eabc", "\x7f", "x" * 5000]
)
def test_text_that_could_forge_a_line_is_refused(text):
    body = {"assignment_id": "a", "client_id": "c", "reason": "crashed", "detail": text}
    with pytest.raises(WireError, match="detail"):
        decode_result(framed(body, kind="failure"))
    table, header, data = opened(PROFILES[0])
    header["body"]["device"] = text
    with pytest.raises(WireError, match="device"):
        decode_profile(closed(table, header, data))


def test_every_number_of_a_message_has_a_range():
    """A field that is added must be given one, or its first message is refused with a KeyError."""
    targets.warm_up()
    from strategies.vetting import NOT_A_NUMBER, RANGES

    assert RANGES.keys() >= NOT_A_NUMBER
    for module_field in numeric_fields():
        assert module_field in RANGES, module_field


def numeric_fields() -> set[str]:
    from dataclasses import fields, is_dataclass
    from typing import get_args, get_type_hints

    from strategies import types, wire

    found: set[str] = set()

    def visit(noun: type) -> None:
        hints = get_type_hints(noun, vars(types))
        for field in fields(noun):
            walk(hints[field.name], field.name)

    def walk(hint: object, name: str) -> None:
        if hint in (int, float):
            found.add(name)
        elif isinstance(hint, type) and is_dataclass(hint):
            visit(hint)
        for argument in get_args(hint):
            walk(argument, name)

    for noun in (types.Assignment, types.ClientProfile, types.ClientFailure, wire._UpdateHeader):
        visit(noun)
    assert len(found) > 50
    return found
