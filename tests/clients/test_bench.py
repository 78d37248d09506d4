"""What the warm trainer is made of: bench, chunks, settings file, generated code."""

from __future__ import annotations

import time

import numpy as np
import pytest

from clients.bench import Bench
from clients.framing import CHUNK_BYTES, FramingError, call_for, cut, joined
from clients.jobs import BusyError, StoppingError
from clients.settings import ClientSettings, read_settings, settings_json
from strategies.errors import ConfigError, WireError
from strategies.recipe import DataRecipe
from strategies.types import ClientId
from strategies.wire import encode_recipe
from tests.clients.trainers import WAIT_SECONDS, Scripted, an_assignment
from tests.conftest import REPOSITORY
from tests.fuzz.mutation import closed, opened

ONE = ClientId("client-0")


class Timed:
    """A bench whose clock stands where the test puts it."""

    def __init__(self):
        self.now = 0.0
        self.bench = Bench(self.make, clock=lambda: self.now)
        while not hasattr(self, "trainer"):
            time.sleep(0.001)

    def make(self, listener):
        self.trainer = Scripted(listener)
        return self.trainer

    def answer(self, message):
        job = self.bench.submit(ONE, message)
        for _ in self.bench.follow(job, lambda: True):
            pass
        self.bench.leave(job)
        return job


def test_an_idle_trainer_forgets_once_and_not_while_it_works():
    timed = Timed()
    timed.now = 1000.0
    assert not timed.bench.forget_if_idle(10)  # nothing was loaded yet
    timed.trainer.gate.set()
    first = timed.answer(an_assignment())
    timed.now = 1009.0
    assert timed.bench.status().idle_seconds == 9
    assert not timed.bench.forget_if_idle(10)
    timed.now = 1010.0
    assert timed.bench.forget_if_idle(10)
    assert not timed.bench.forget_if_idle(10)
    assert timed.trainer.forgotten == 1
    timed.trainer.gate.clear()
    job = timed.bench.submit(ONE, an_assignment())
    assert job is not first  # the last answer went with the model
    timed.now = 5000.0
    assert not timed.bench.forget_if_idle(10)
    assert timed.bench.status().idle_seconds == 0
    with pytest.raises(BusyError, match="client-0"):
        timed.bench.forget()
    timed.trainer.gate.set()
    assert timed.bench.close(WAIT_SECONDS)


def test_a_failure_is_not_given_again():
    timed = Timed()
    timed.trainer.gate.set()
    timed.trainer.error = ValueError("once")
    assert timed.answer(an_assignment()).error == "ValueError: once"
    timed.trainer.error = None
    assert timed.answer(an_assignment()).answer
    assert timed.bench.status().answers == 1
    assert timed.bench.close(WAIT_SECONDS)
    with pytest.raises(StoppingError):
        timed.bench.submit(ONE, an_assignment("two"))


def test_another_client_is_not_given_the_answer():
    timed = Timed()
    timed.trainer.gate.set()
    request = an_assignment()
    mine = timed.answer(request)
    other = timed.bench.submit(ClientId("client-1"), request)
    assert other is not mine
    assert timed.bench.close(WAIT_SECONDS)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 3])
def test_what_is_cut_is_joined_again(size):
    message = np.random.default_rng(size).bytes(size)
    chunks = list(cut(message))
    assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)
    assert joined(size, chunks, limit_bytes=size) == message


@pytest.mark.parametrize(
    ("total", "chunks", "limit", "said"),
    [
        (3, [b"ab"], 9, "2 bytes of 3"),
        (3, [b"ab", b"cd"], 9, "more than the 3"),
        (2**62, [], 9, "at most 9"),  # no room is made before the limit is looked at
        (2**62, [], 2**63, "0 bytes of"),  # room grows with what comes
    ],
)
def test_what_is_not_as_announced_is_refused(total, chunks, limit, said):
    with pytest.raises(FramingError, match=said):
        joined(total, chunks, limit_bytes=limit)


def test_each_request_has_its_call():
    assert call_for(encode_recipe("{}", ())) == "Describe"
    assert call_for(an_assignment()) == "Train"
    assert call_for(an_assignment(scored=True)) == "Evaluate"
    with pytest.raises(WireError):
        call_for(b"")


def test_settings_survive_their_file(tmp_path):
    settings = ClientSettings(
        cache_folder=tmp_path / "cache",
        state_folder=tmp_path / "state",
        data=DataRecipe(source="jsonl", train="mine.jsonl", labels=("a", "b")),
        num_threads=3,
    )
    path = tmp_path / "settings.json"
    path.write_text(settings_json(settings))
    assert read_settings(path) == settings


def test_settings_faults_come_together_and_by_name(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"cache_folder": "c", "num_threads": 0, "treads": 2}')
    with pytest.raises(ConfigError) as caught:
        read_settings(path)
    assert {fault.key for fault in caught.value.faults} == {"state_folder", "num_threads", "treads"}
    with pytest.raises(ConfigError, match="a JSON file that can be read"):
        read_settings(tmp_path / "none.json")


def test_the_generated_code_is_what_the_interface_gives(tmp_path):
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    source = "clients/proto/trainer.proto"
    assert protoc.main(["", f"-I{REPOSITORY}", *outputs, str(REPOSITORY / source)]) == 0
    made = sorted((tmp_path / "clients" / "proto").iterdir())
    assert len(made) == 3
    for path in made:
        assert path.read_bytes() == (REPOSITORY / "clients" / "proto" / path.name).read_bytes()


def test_a_run_id_that_is_no_text_ends_no_worker():
    """It once ended the bench's thread, and with it every later answer."""
    timed = Timed()
    timed.trainer.gate.set()
    table, header, tensors = opened(an_assignment())
    for run_id in ([], {"a": 1}, 7, "a\nb", None):
        header["body"]["run_id"] = run_id
        job = timed.bench.submit(ClientId("client-0"), closed(table, header, tensors))
        list(timed.bench.follow(job, lambda: True))
        assert job.error
        timed.bench.leave(job)
    assert timed.bench.status().runs_served == 0
    timed.answer(an_assignment())
    assert timed.bench.status().runs_served == 1
