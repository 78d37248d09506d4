"""No payload is ever unpickled or evaluated: not by our code, and not by what our code calls."""

from __future__ import annotations

import ast
import io
import pickle
import struct
import tracemalloc
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from clients.archives import DAMAGED, read_arrays
from clients.data.encoding import Tokens, cached
from clients.framing import call_for
from clients.model.export import load_base, load_merged, merge
from clients.received import ReceivedTensors
from clients.state_store import ClientStateStore
from orchestrator.checkpoint import load_state
from orchestrator.store.blobs import BlobStore
from strategies.errors import BlobError, DataError, ModelError, TransportError, WireError
from strategies.types import ClientId
from strategies.wire import (
    decode_assignment,
    decode_profile,
    decode_recipe,
    decode_result,
    from_record,
    kind_of,
    to_record,
)
from tests.conftest import REPOSITORY

TABLE = b'{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}'
PRODUCT = ("strategies", "orchestrator", "clients", "examples", "benchmarks")
MODULES = {
    "pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve",
    "marshal", "copyreg", "yaml", "jsonpickle", "code", "codeop",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {"read_pickle", "to_pickle", "load_object", "loads_pickle"}


def faults_of(tree: ast.AST) -> list[str]:
    """What in a module may run code that somebody else wrote."""
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            found += [
                f"from {node.module} import {a.name}" for a in node.names if a.name in MODULES
            ]
        found += [f"import {name}" for name in names if name.split(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            found += _call_faults(node)
    return found


def _call_faults(node: ast.Call) -> list[str]:
    text, words = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
    if isinstance(node.func, ast.Name) and node.func.id in CALLS:
        return [text]
    if isinstance(node.func, ast.Attribute) and node.func.attr in ATTRIBUTES:
        return [text]
    if text in ("torch.load", "torch.jit.load", "torch.package.PackageImporter"):
        return (
            [] if _is(words.get("weights_only"), value=True) else [f"{text} without weights_only"]
        )
    if text.endswith(("np.load", "numpy.load", "read_array", "np.lib.npyio.NpzFile")):
        return [] if _is(words.get("allow_pickle"), value=False) else [f"{text} with pickles"]
    if text.endswith("from_pretrained") and _is(words.get("trust_remote_code"), value=True):
        return [f"{text} with remote code"]
    return []


def _is(node: ast.expr | None, *, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def sources() -> list[Path]:
    return [path for package in PRODUCT for path in (REPOSITORY / package).rglob("*.py")]


def test_no_product_module_unpickles_or_evaluates():
    paths = sources()
    assert len(paths) > 250
    found = {str(p.relative_to(REPOSITORY)): faults_of(ast.parse(p.read_text())) for p in paths}
    assert {path: faults for path, faults in found.items() if faults} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "import cloudpickle as c", "eval(x)",
        "from torch import pickle", "torch.load(p)", "torch.load(p, weights_only=False)",
        "np.load(p)", "np.load(p, allow_pickle=True)", "import yaml", "exec(text)", "marshal = 1;"
        "import marshal", "pd.read_pickle(p)", "Auto.from_pretrained(n, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(source):
    assert faults_of(ast.parse(source))


class Canary:
    """Whoever unpickles it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def canary(tmp_path: Path):
    path = tmp_path / "code-ran"
    yield Canary(path)
    assert not path.exists(), "a payload ran code"


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


@lru_cache
def bomb(size: int = 80 * 2**20) -> bytes:
    """Some kilobytes that unfold to ``size`` bytes of zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("numbers.npy", npy(np.zeros(size, np.uint8)))
    return buffer.getvalue()


def announced(shape: tuple[int, ...]) -> bytes:
    """An array of ten bytes that says it is larger."""
    head = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + b"0123456789"


def payloads(canary: Canary) -> dict[str, bytes]:
    objects = np.array([canary], dtype=object)
    saved = io.BytesIO()
    torch.save(canary, saved)
    plain = pickle.dumps(canary)
    return {
        "pickle": plain,
        "old pickle": pickle.dumps(canary, protocol=0),
        "npy of objects": npy(objects),
        "npz of objects": npz(numbers=npy(objects)),
        "npz of pickles": npz(numbers=plain),
        "npz of text": npz(numbers=npy(np.array(["a"]))),
        "plain npy": npy(np.arange(3)),
        "torch": saved.getvalue(),
        "zip bomb": bomb(),
        "announced": npz(numbers=announced((10**12,))),
        "overflowing": npz(numbers=announced((2**62, 2**62))),
        "negative": npz(numbers=announced((-8, -1))),
        "encrypted": npz(numbers=npy(np.arange(3))).replace(
            b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
        ),
        "empty": b"",
        "in a frame": struct.pack("<Q", len(plain)) + plain,
        "in a tensor": struct.pack("<Q", 64) + TABLE.ljust(64) + plain[:9],
    }  # fmt: skip


NAMES = sorted(payloads(Canary(Path("nowhere"))))


@pytest.mark.parametrize("name", NAMES)
def test_every_decoder_of_messages_refuses_it(name, canary):
    message = payloads(canary)[name]
    for decode in (
        decode_assignment,
        decode_result,
        decode_recipe,
        decode_profile,
        kind_of,
        call_for,
    ):
        with pytest.raises((WireError, TransportError), match=r"."):
            decode(message)
    with pytest.raises(WireError):
        decode_result(from_record(to_record(message)))


@pytest.mark.parametrize("name", NAMES)
def test_every_loader_of_files_refuses_it_or_makes_it_anew(name, canary, tmp_path):
    data, made = payloads(canary)[name], []
    store = ClientStateStore(tmp_path / "state")
    folder = store.folder_of("run", ClientId("client-0"))
    folder.mkdir(parents=True)
    tracemalloc.start()
    (folder / "step-00000001.npz").write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        store.load("run", ClientId("client-0"), before_step=9)

    cache = tmp_path / "cache" / "tokens" / "key.npz"
    cache.parent.mkdir(parents=True)
    cache.write_bytes(data)
    tokens = Tokens(
        flat=np.zeros(1, np.int32), offsets=np.array([0, 1]), types=None,
        prompt_lengths=np.zeros(1, np.int64), num_truncated=0,
    )  # fmt: skip
    cached(tmp_path / "cache", "key", lambda: made.append(1) or tokens)
    assert made
    assert cached(tmp_path / "cache", "key", lambda: made.append(1) or tokens).flat.shape == (1,)
    assert len(made) == 1

    blobs = BlobStore(tmp_path / "blobs")
    with pytest.raises(BlobError, match="no checkpoint"):
        load_state(blobs.put(data), blobs)

    (folder / "received-00000001.safetensors").write_bytes(data)
    assert not [name for name in ReceivedTensors(folder)._read(1) if "|" in name]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20, f"{peak} bytes for a file of {len(data)}"


@pytest.mark.parametrize("name", ["pickle", "torch", "zip bomb", "empty"])
def test_published_folders_are_read_from_safetensors_alone(name, canary, tmp_path):
    data = payloads(canary)[name]
    (tmp_path / "perennial.json").write_bytes(data)
    for file in ("adapter_model.bin", "pytorch_model.bin", "adapter_model.safetensors",
                 "merged.safetensors", "base.safetensors"):  # fmt: skip
        (tmp_path / file).write_bytes(data)
    for load in (load_base, load_merged, lambda folder: merge(folder, tmp_path / "to")):
        with pytest.raises(ModelError, match=r"no adapter folder|holds no weights"):
            load(tmp_path)


def test_what_we_write_is_read_back(tmp_path):
    path = tmp_path / "a.npz"
    given = {
        "scalar": np.array(3), "empty": np.zeros((0, 4), np.float32), "flags": np.array([True]),
        "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "a/b|c": np.arange(3),
    }  # fmt: skip
    np.savez(path, allow_pickle=False, **given)
    found = read_arrays(path)
    assert found.keys() == given.keys()
    for key, value in given.items():
        np.testing.assert_array_equal(found[key], value)
        assert found[key].dtype == value.dtype
    with pytest.raises(DAMAGED):
        read_arrays(tmp_path)


def test_checkpoints_of_strangers_are_not_taken_from_pickles(tmp_path, canary):
    from transformers import BertConfig, BertModel

    from clients.model.base import _load

    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )
    BertModel(config).save_pretrained(tmp_path)
    assert _load(BertModel, str(tmp_path), config, {}) is not None
    (tmp_path / "model.safetensors").unlink()
    torch.save(canary, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError):
        _load(BertModel, str(tmp_path), config, {})
