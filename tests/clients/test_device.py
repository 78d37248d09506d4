"""What a client says of its device, and that nothing but one module knows which it is."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from clients import profile, received
from clients.calibration import calibrated
from clients.device import CPU, Device, best_device
from clients.profile import device_kind
from clients.workshop import open_workshop, shard_of
from strategies.errors import ModelError
from strategies.types import ClientFailure, FailureReason
from tests.clients.test_trainer import IDS, lab
from tests.conftest import REPOSITORY

__all__ = ["lab"]  # a fixture


def test_only_one_module_moves_arrays_between_host_and_device():
    """The base is made, and its digest taken, before it is moved."""
    before = {"device.py", "pretext.py", "base.py"}
    found = {
        path.name
        for path in (REPOSITORY / "clients").rglob("*.py")
        if re.search(r"from_numpy\(|\.numpy\(\)", path.read_text(encoding="utf-8"))
    }
    assert found <= before


def test_a_kind_is_what_the_operator_says_or_what_is_there():
    gpu = Device("cuda", torch.bfloat16)
    assert device_kind(CPU, None, None) == "cpu"
    assert device_kind(CPU, 2**30, "auto") == "edge"
    assert device_kind(CPU, 2**40, "auto") == "cpu"
    assert device_kind(CPU, None, "edge") == "edge"
    assert device_kind(gpu, None, "auto") == "gpu"
    assert device_kind(gpu, 2**30, "edge") == "edge"
    with pytest.raises(ModelError, match="found no CUDA device"):
        device_kind(CPU, None, "gpu")


def test_a_cpu_never_makes_its_products_in_bfloat16():
    assert best_device(gpu_allowed=False) == CPU
    assert CPU.autocast_to is None


def test_other_products_leave_what_is_sent_float32(lab):
    """The path of a GPU, with bfloat16 products on the CPU."""
    bench = lab()
    order = bench.plan().orders[0]
    plain = bench.ask(order)
    shop = bench.trainer._workshop(order.assignment.recipe)
    shop.model.base = dataclasses.replace(shop.base, device=Device("cpu", torch.bfloat16))
    rough = bench.ask(dataclasses.replace(order))
    assert all(value.dtype == np.float32 for value in rough.delta.values())
    assert any(not np.array_equal(value, plain.delta[key]) for key, value in rough.delta.items())
    assert rough.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=0.05)


def test_a_calibration_leaves_no_trace(lab):
    bench = lab()
    bench.ask(bench.plan().orders[0])
    shop = bench.trainer._workshop(bench.config.shared_recipe().model_dump_json())
    shop.model.apply({}, 1.0)
    shop.model.trainable({})
    module = shop.model.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    flags = [p.requires_grad for p in module.parameters()]
    torch.manual_seed(7)
    stream, mode = torch.random.get_rng_state(), module.training
    found = calibrated(shop.model, shop.dataset.train, shard_of(shop, IDS[0]).train[0], 5.0)
    assert torch.equal(torch.random.get_rng_state(), stream)
    assert module.training == mode
    assert [p.requires_grad for p in module.parameters()] == flags
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert found.step_seconds > 0
    assert found.flops_per_second > 0
    assert found.activation_bytes > 1000


def test_a_simulated_client_is_not_timed_and_an_edge_client_once(lab, monkeypatch):
    bench = lab()
    assert bench.federation.clients[0].flops_per_second is None
    assert bench.federation.clients[0].memory_limit_bytes is None
    bench.trainer.settings = dataclasses.replace(
        bench.trainer.settings, kind="auto", memory_limit_bytes=2**30,
        uplink_limit_bytes_per_second=1e4,
    )  # fmt: skip
    bench.trainer._workshops.clear()
    recipe = bench.config.shared_recipe().model_dump_json()
    one, _ = bench.trainer.describe(recipe, IDS[0], ())
    assert (one.kind, one.memory_bytes, one.memory_limit_bytes) == ("edge", 2**30, 2**30)
    assert one.uplink_limit_bytes_per_second == 1e4
    assert one.dtypes == ("float32",)
    assert one.recomputes
    assert one.longest_example == 5  # patches and one more
    assert 0 < one.resident_bytes < psutil.virtual_memory().total
    assert one.free_disk_bytes > 0
    other, _ = bench.trainer.describe(recipe, IDS[1], ())
    assert other.flops_per_second == one.flops_per_second


def test_little_memory_makes_small_batches_of_what_is_only_looked_at(lab):
    bench = lab()
    recipe = bench.config.shared_recipe().model_dump_json()
    wide, tight = (
        open_workshop(recipe, dataclasses.replace(bench.trainer.settings, memory_limit_bytes=limit))
        for limit in (None, 1)
    )
    ids = shard_of(wide, IDS[0]).test[0]
    assert len(wide.dataset.test.bucketed(ids, 64)[0]) > 1
    assert {len(batch) for batch in tight.dataset.test.bucketed(ids, 64)} == {1}


def test_a_disk_that_is_too_full_is_a_refusal_that_names_the_bytes(lab, monkeypatch):
    bench = lab()
    monkeypatch.setattr(received, "free_disk_bytes", lambda folder: 10)
    answer = bench.ask(bench.plan().orders[0])
    assert isinstance(answer, ClientFailure)
    assert answer.reason is FailureReason.NO_ROOM
    assert re.search(r"found 10 free bytes, expected \d+ .* \d+ are missing", answer.detail)


def test_free_space_is_that_of_the_nearest_folder_that_is_there(tmp_path):
    assert profile.free_disk_bytes(tmp_path / "not" / "yet") == pytest.approx(
        profile.free_disk_bytes(tmp_path), rel=0.1
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone tells it")
def test_a_process_does_not_count_what_the_one_that_started_it_held():
    held = np.ones(2**27)  # a GiB, in this process
    code = "from clients.profile import peak_memory_bytes; print(peak_memory_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert 2**26 < int(done.stdout) < held.nbytes
