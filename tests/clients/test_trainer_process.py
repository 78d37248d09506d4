"""The warm trainer as a process of its own: killed, restarted, stopped, left idle."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import psutil
import pytest

from clients.trainer_client import TrainerClient
from strategies.types import (
    ClientFailure,
    ClientId,
    FailureReason,
    GroupName,
    ParamKey,
    Update,
)
from strategies.wire import (
    decode_profile,
    decode_result,
    encode_assignment,
    encode_recipe,
    encode_result,
)
from tests.clients.test_trainer import Lab
from tests.clients.trainers import WAIT_SECONDS, TrainerProcess, a_folder, an_assignment, served
from tests.conftest import REPOSITORY, tiny_config

ONE = ClientId("client-0")
STEPS = 400  # seconds of work: long enough to be in the middle of

pytestmark = pytest.mark.slow


@pytest.fixture
def folder():
    with a_folder() as folder:
        yield folder


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, tiny_config(learning__local_steps=STEPS))


def message_of(order):
    return encode_assignment(order.assignment, order.tensors)


class Once:
    """Does something the first time it hears that a training is under way."""

    def __init__(self, deed):
        self.deed, self.done = deed, threading.Event()

    def __call__(self, progress):
        if progress.step and not self.done.is_set():
            self.done.set()
            self.deed()


def test_a_trainer_killed_in_the_middle_is_restarted_and_asked_again(lab, folder):
    order = lab.plan(1).orders[0]
    with TrainerProcess(folder) as first:
        assert first.ready() == f"trainer listening on {first.address}\n"
        restarted = []

        def kill_and_restart():
            first.kill()  # leaves its socket behind
            restarted.append(TrainerProcess(folder))

        client = TrainerClient(
            first.address, recovery_seconds=WAIT_SECONDS, listener=Once(kill_and_restart)
        )
        update = decode_result(client.answer(ONE, message_of(order)))
        with restarted[0]:
            status = client.status()
    expected = lab.ask(order)
    assert isinstance(update, Update), update
    assert update.metrics == expected.metrics
    for key, value in expected.delta.items():
        np.testing.assert_array_equal(update.delta[key], value)
    assert (status.answers, status.model_loads) == (1, 1)


def test_a_trainer_killed_for_good_is_a_recorded_failure(lab, folder):
    with TrainerProcess(folder) as trainer:
        trainer.ready()
        client = TrainerClient(trainer.address, recovery_seconds=1, listener=Once(trainer.kill))
        failure = decode_result(client.answer(ONE, message_of(lab.plan(1).orders[0])))
    assert isinstance(failure, ClientFailure)
    assert failure.reason is FailureReason.CRASHED
    assert "no trainer at" in failure.detail
    assert "UNAVAILABLE" in failure.detail


def test_sigterm_in_the_middle_ends_it_cleanly_with_nothing_saved(lab, folder):
    with TrainerProcess(folder) as trainer:
        trainer.ready()
        stop = Once(lambda: trainer.process.send_signal(signal.SIGTERM))
        client = TrainerClient(trainer.address, recovery_seconds=1, listener=stop)
        failure = decode_result(client.answer(ONE, message_of(lab.plan(1).orders[0])))
        assert failure.reason is FailureReason.CRASHED
        assert "abandoned" in failure.detail
        assert trainer.process.wait(WAIT_SECONDS) == 0
    assert not (folder / "run" / "trainer.sock").exists()
    assert not list((folder / "state").rglob("step-*"))


ASK = """
import sys
from clients.trainer_client import TrainerClient
message = open(sys.argv[2], "rb").read()
client = TrainerClient(sys.argv[1], listener=lambda at: print(at.step, flush=True))
client.answer("client-0", message)
"""


def test_a_client_app_killed_in_the_middle_leaves_the_trainer_at_work(lab, folder):
    order = lab.plan(1).orders[0]
    (folder / "message").write_bytes(message_of(order))
    with TrainerProcess(folder) as trainer:
        trainer.ready()
        with subprocess.Popen(
            [sys.executable, "-c", ASK, trainer.address, str(folder / "message")],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        ) as app:
            while int(app.stdout.readline()) == 0:
                pass
            app.kill()
        client = TrainerClient(trainer.address)
        heard = []
        again = dataclasses.replace(client, listener=heard.append)
        assert isinstance(decode_result(again.answer(ONE, message_of(order))), Update)
        assert client.status().answers == 1  # it was trained once
        assert heard[-1].step == STEPS


class Loaded:
    """Answers anything with 2.5 GiB that were made before."""

    model_loads = 0

    def __init__(self, answer, listener):
        self.bytes = answer

    def answer(self, client_id, message):
        return self.bytes

    def forget(self):
        self.bytes = b""


def test_an_update_of_two_and_a_half_gibibytes_comes_through(folder):
    needed, num_values = 12 * 2**30, 5 * 2**27  # the update, encoded, received, decoded
    if psutil.virtual_memory().available < needed:
        pytest.skip(f"needs {needed} bytes of free memory")
    key = ParamKey(GroupName("big"), "weight")
    delta = np.zeros(num_values, dtype=np.float32)
    delta[[0, num_values // 2, -1]] = 1.0, 2.0, 3.0
    names = {"assignment_id": "one", "client_id": ONE, "plan_hash": "none"}
    encoded = encode_result(Update(**names, delta={key: delta}, num_examples={}))
    del delta
    assert len(encoded) > 2.5 * 2**30
    with served(partial(Loaded, encoded), f"unix:{folder}/run/trainer.sock") as serving:
        received = TrainerClient(serving.address).answer(ONE, an_assignment())
    assert len(received) == len(encoded)
    assert received == encoded
    del encoded, serving
    value = decode_result(received).delta[key]
    assert value.shape == (num_values,)
    assert np.flatnonzero(value).tolist() == [0, num_values // 2, num_values - 1]
    assert value[[0, num_values // 2, -1]].tolist() == [1.0, 2.0, 3.0]


def test_an_idle_trainer_drops_the_model_and_loads_it_again(tmp_path, folder):
    lab = Lab(tmp_path, tiny_config())
    with TrainerProcess(folder, "--idle-seconds", "0.5") as trainer:
        trainer.ready()
        client = TrainerClient(trainer.address)
        for step, loads in ((1, 1), (2, 2)):
            order = lab.plan(step).orders[0]
            update = decode_result(client.answer(ONE, message_of(order)))
            expected = lab.ask(order)
            for key, value in expected.delta.items():
                np.testing.assert_array_equal(update.delta[key], value)
            assert client.status().model_loads == loads
            threading.Event().wait(2.5)  # the trainer looks once a second


def test_a_trainer_that_was_told_nothing_of_its_device_times_it(folder):
    recipe = tiny_config().shared_recipe().model_dump_json()
    with TrainerProcess(folder) as trainer:
        trainer.ready()
        answer = TrainerClient(trainer.address).answer(ONE, encode_recipe(recipe, ()))
    profile, _ = decode_profile(answer)
    assert profile.flops_per_second > 0
    assert profile.step_seconds > 0
    assert profile.longest_example == 5  # patches and one more
