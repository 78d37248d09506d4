"""Compressors: what comes back, what it costs, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from strategies.catalog import COMPRESSORS
from strategies.compression.cast import BFloat16, Float16
from strategies.compression.chain import bytes_per_value, compress, decompress
from strategies.compression.int8 import Int8
from strategies.compression.topk import TopK
from strategies.errors import WireError
from strategies.types import GroupName, ParamKey

KEY = ParamKey(GroupName("block.0.query"), "lora_B")
SHAPES = st.sampled_from([(3, 5), (1, 1), (7,), (40, 2), (2, 3, 4)])
CHAINS = [(), (Float16(),), (BFloat16(),), (Int8(),), (TopK(density=0.3),)]
CHAINS += [(TopK(density=0.3), Int8()), (TopK(density=0.01), Float16())]


def values_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("chain", CHAINS, ids=repr)
@given(shape=SHAPES, seed=st.integers(0, 20))
def test_every_chain_gives_the_shape_back_and_is_stable(chain, shape, seed):
    tensors = {KEY: values_of(shape, seed)}
    encoded = compress(tensors, chain)
    again = decompress(encoded, chain, {KEY: shape})
    assert again[KEY].shape == shape
    assert again[KEY].dtype == np.float32
    # What was sent once is sent the same way again: decoding loses nothing more.
    twice = decompress(compress(again, chain), chain, {KEY: shape})
    np.testing.assert_allclose(twice[KEY], again[KEY], rtol=1e-2, atol=1e-7)
    # It survives the file format of the wire.
    plain = {f"{k.group}|{k.part}": v for k, v in encoded.items()}
    assert {name: array.tobytes() for name, array in load(save(plain)).items()} == {
        name: array.tobytes() for name, array in plain.items()
    }


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_zeros_stay_zeros_and_nothing_is_changed_in_place(name):
    compressor, zeros = COMPRESSORS[name](), np.zeros((4, 6), dtype=np.float32)
    assert not compressor.decode(compressor.encode(zeros), (4, 6)).any()
    values = values_of((4, 6))
    before = values.copy()
    compressor.encode(values)
    np.testing.assert_array_equal(values, before)


def test_both_factors_of_a_lora_have_one_scale_per_component():
    for shape in [(4, 300), (300, 4)]:
        assert Int8().encode(values_of(shape))["scale"].size == 4


def test_int8_errs_by_at_most_half_a_step_of_its_row():
    values = values_of((5, 64)) * np.array([[1e-6], [1], [100], [1e-3], [3]], dtype=np.float32)
    back = Int8().decode(Int8().encode(values), values.shape)
    step = np.abs(values).max(axis=1, keepdims=True) / 127
    assert (np.abs(back - values) <= 0.5001 * step).all()


def test_bfloat16_rounds_to_even_like_torch():
    torch = pytest.importorskip("torch")
    values = values_of((64, 33))
    theirs = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(
        BFloat16().decode(BFloat16().encode(values), values.shape), theirs
    )


def test_half_precision_stays_finite():
    big = np.array([1e9, -1e9, 1.0], dtype=np.float32)
    assert Float16().decode(Float16().encode(big), (3,)).tolist() == [65504.0, -65504.0, 1.0]


@pytest.mark.parametrize("chain", [(BFloat16(),), (Int8(),), (Float16(),), (TopK(density=0.5),)])
def test_a_nan_arrives_as_one(chain):
    values = values_of((3, 4))
    values[1, 2] = np.nan
    back = decompress(compress({KEY: values}, chain), chain, {KEY: (3, 4)})[KEY]
    assert np.isnan(back).any()


@given(density=st.floats(0.01, 1.0), seed=st.integers(0, 9))
def test_topk_keeps_the_largest(density, seed):
    values = values_of((8, 16), seed)
    back = TopK(density=density).decode(TopK(density=density).encode(values), values.shape)
    kept = back != 0
    assert kept.sum() == max(1, round(density * 128))
    np.testing.assert_array_equal(back[kept], values[kept])
    assert np.abs(values[kept]).min() >= np.abs(values[~kept]).max(initial=0.0)


@pytest.mark.parametrize(("density", "name"), [(0.02, "index"), (0.05, "bitmap")])
def test_topk_takes_the_smaller_of_index_and_bitmap(density, name):
    values = values_of((100, 100))
    encoded = TopK(density=density).encode(values)
    size = sum(array.nbytes for array in encoded.values())
    kept = round(density * 10_000)
    assert name in encoded
    assert size == min(8 * kept, 4 * kept + 1250)
    assert size == pytest.approx(10_000 * TopK(density=density).bytes_per_value())


@pytest.mark.parametrize("chain", CHAINS, ids=repr)
def test_bytes_per_value_is_what_a_large_tensor_takes(chain):
    values = values_of((500, 400))
    size = sum(array.nbytes for array in compress({KEY: values}, chain).values())
    assert size / values.size == pytest.approx(bytes_per_value(chain), rel=0.02)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"0.index": np.array([99], np.uint32), "0.values": np.ones(1, np.float32)}, "place 99"),
        ({"0.index": np.array([1, 1], np.uint32), "0.values": np.ones(2, np.float32)}, "ascending"),
        ({"0.index": np.array([1], np.uint32), "0.values": np.ones(2, np.float32)}, "values for"),
        ({"0.index": np.array([1], np.int64), "0.values": np.ones(1, np.float32)}, "int64"),
        ({"0.index": np.array([1], np.uint32)}, "without its values"),
        ({"0.values": np.ones(3, np.float32)}, "expected"),
        ({"values": np.ones(3, np.float32)}, "no part of a compressed"),
    ],
)
def test_what_describes_no_tensor_is_refused(arrays, says):
    encoded = {ParamKey(KEY.group, f"{KEY.part}#{name}"): array for name, array in arrays.items()}
    with pytest.raises(WireError, match=says):
        decompress(encoded, (TopK(),), {KEY: (3, 4)})


def test_a_tensor_outside_the_plan_is_refused():
    with pytest.raises(WireError, match="not part of the plan"):
        decompress(compress({KEY: values_of((3, 4))}, (Int8(),)), (Int8(),), {})


@pytest.mark.parametrize("chain", [(Int8(),), (Float16(),), (TopK(density=0.3), Int8())])
def test_another_shape_is_refused(chain):
    with pytest.raises(WireError):
        decompress(compress({KEY: values_of((3, 4))}, chain), chain, {KEY: (9, 4)})
