"""The warm trainer over gRPC: same answers, one at a time, and every end of a connection."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest

from clients import profile
from clients.proto.trainer_pb2 import Opening, Request
from clients.proto.trainer_pb2_grpc import TrainerStub
from clients.trainer import LocalTrainer
from clients.trainer_client import TrainerClient
from clients.trainer_service import main, serve
from strategies.errors import ConfigError, TransportError
from strategies.types import ClientFailure, ClientId, FailureReason, Update
from strategies.wire import decode_result, encode_assignment, encode_recipe
from tests.clients.test_trainer import IDS, Lab
from tests.clients.trainers import WAIT_SECONDS, Scripted, a_folder, an_assignment, served
from tests.conftest import REPOSITORY, tiny_config

ONE = ClientId("client-0")


@pytest.fixture
def address():
    with a_folder() as folder:
        yield f"unix:{folder}/run/trainer.sock"


class Fake:
    """A scripted trainer behind a socket, and clients to ask it."""

    def __init__(self, address):
        self.address = address
        self.trainer = None
        self.pool = ThreadPoolExecutor(4)

    def make(self, listener):
        self.trainer = Scripted(listener)
        return self.trainer

    def ask(self, message, **fields):
        client = TrainerClient(self.address, **{"recovery_seconds": 0.5} | fields)
        return self.pool.submit(lambda: decode_result(client.answer(ONE, message)))


@pytest.fixture
def fake(address):
    fake = Fake(address)
    with served(fake.make, address) as fake.serving:
        while fake.trainer is None:
            time.sleep(0.001)
        yield fake
        fake.trainer.gate.set()
    fake.pool.shutdown()


def soon(condition):
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def same(ours, theirs):
    assert isinstance(ours, Update)
    assert ours.metrics == theirs.metrics
    assert ours.scores == theirs.scores
    assert ours.delta.keys() == theirs.delta.keys()
    for key, value in theirs.delta.items():
        np.testing.assert_array_equal(ours.delta[key], value)


def test_answers_over_grpc_are_the_trainers_own_and_the_base_is_loaded_once(
    tmp_path, address, monkeypatch
):
    monkeypatch.setattr(profile, "free_disk_bytes", lambda folder: 2**40)  # others write meanwhile
    direct = Lab(tmp_path / "direct", tiny_config())
    remote = Lab(tmp_path / "remote", tiny_config())
    request = encode_recipe(direct.config.shared_recipe().model_dump_json(), ())
    heard = []
    with served(partial(LocalTrainer, remote.trainer.settings), address):
        client = TrainerClient(address, listener=heard.append)
        remote.trainer = client
        for who in IDS:
            assert client.answer(who, request) == direct.trainer.answer(who, request)
        assert not heard
        for run_id in ("first", "second"):
            for step in (1, 2, 4):
                order = direct.plan(step, run_id).orders[0]
                same(remote.ask(order), direct.ask(order))
        scored = direct.plan(3, "second").orders[0]
        assert not scored.assignment.work
        assert remote.ask(scored).scores[0] == direct.ask(scored).scores[0]
        status = client.status()
    assert (status.model_loads, status.runs_served, status.answers) == (1, 2, 3 + 7)
    assert status.device_memory_bytes > 0
    trained = [(at.step, at.steps) for at in heard if at.phase == "train"]
    assert trained == [(1, 3), (2, 3), (3, 3)] * 6
    assert {"load", "evaluate"} <= {at.phase for at in heard}


def test_training_again_gives_what_the_last_answer_would_have(tmp_path, address):
    """The retry of a client app that died after the trainer had finished."""
    bench = Lab(tmp_path, tiny_config())
    with served(partial(LocalTrainer, bench.trainer.settings), address):
        bench.trainer = client = TrainerClient(address)
        bench.ask(bench.plan(1).orders[0])
        order = bench.plan(2).orders[0]
        message = encode_assignment(order.assignment, order.tensors)
        first = client.answer(ONE, message)
        assert client.answer(ONE, message) == first
        assert client.status().answers == 2
        client.reset()
        same(decode_result(client.answer(ONE, message)), decode_result(first))
        assert (client.status().answers, client.status().model_loads) == (3, 2)


def test_a_second_training_is_refused_and_recorded(fake):
    first = fake.ask(an_assignment("one"))
    fake.trainer.started.wait(WAIT_SECONDS)
    second = fake.ask(an_assignment("two")).result(WAIT_SECONDS)
    assert isinstance(second, ClientFailure)
    assert second.reason is FailureReason.BUSY
    assert second.assignment_id == "two"
    assert "at work for client-0 (train, step 1 of 2)" in second.detail
    client = TrainerClient(fake.address)
    assert client.status().busy
    with pytest.raises(TransportError, match="FAILED_PRECONDITION"):
        client.reset()
    fake.trainer.gate.set()
    assert isinstance(first.result(WAIT_SECONDS), Update)
    assert fake.trainer.answered == ["one"]


def test_who_asks_twice_waits_for_the_same_answer(fake):
    both = [fake.ask(an_assignment("one")) for _ in range(2)]
    soon(lambda: fake.serving.bench._current and fake.serving.bench._current.waiting == 2)
    fake.trainer.gate.set()
    assert all(isinstance(reply.result(WAIT_SECONDS), Update) for reply in both)
    assert fake.trainer.answered == ["one"]


def raw_call(channel, message):
    parts = [Request(opening=Opening(client_id=ONE, total_bytes=len(message)))]
    return TrainerStub(channel).Train(iter([*parts, Request(chunk=message)]))


def test_work_nobody_waits_for_goes_on_until_something_else_is_wanted(fake):
    bench = fake.serving.bench
    with grpc.insecure_channel(fake.address) as channel:
        call = raw_call(channel, an_assignment("one"))
        assert next(call).progress.step == 1
        call.cancel()
    soon(lambda: bench._current.waiting == 0)
    again = fake.ask(an_assignment("one"))
    soon(lambda: bench._current.waiting == 1)
    fake.trainer.gate.set()
    assert isinstance(again.result(WAIT_SECONDS), Update)
    fake.trainer.gate.clear()
    with grpc.insecure_channel(fake.address) as channel:
        call = raw_call(channel, an_assignment("two"))
        next(call)
        call.cancel()
    soon(lambda: bench._current.waiting == 0)
    other = fake.ask(an_assignment("three"))
    soon(lambda: fake.trainer.forgotten == 1)  # a half-trained model is not kept
    fake.trainer.gate.set()
    assert isinstance(other.result(WAIT_SECONDS), Update)
    assert fake.trainer.answered == ["one", "three"]


def test_a_trainer_that_raises_says_what_and_goes_on(fake):
    fake.trainer.gate.set()
    fake.trainer.error = MemoryError("no room for 3 GiB")
    failure = fake.ask(an_assignment()).result(WAIT_SECONDS)
    assert failure.reason is FailureReason.CRASHED
    assert failure.assignment_id == "one"
    assert "MemoryError: no room for 3 GiB" in failure.detail
    assert fake.trainer.forgotten == 1
    fake.trainer.error = None
    assert isinstance(fake.ask(an_assignment()).result(WAIT_SECONDS), Update)


def test_bytes_that_are_no_request_are_named(fake):
    for message in (b"", b"nonsense"):
        failure = fake.ask(message).result(WAIT_SECONDS)
        assert failure.reason is FailureReason.MALFORMED
    with grpc.insecure_channel(fake.address) as channel:
        with pytest.raises(grpc.RpcError, match="a message for Evaluate, not Train"):
            next(raw_call(channel, an_assignment(scored=True)))
        with pytest.raises(grpc.RpcError, match="0 bytes"):
            next(TrainerStub(channel).Train(iter([])))


def test_without_a_trainer_there_is_a_failure_within_the_bound(address):
    client = TrainerClient(address, recovery_seconds=0.3)
    start = time.monotonic()
    failure = decode_result(client.answer(ONE, an_assignment()))
    assert 0.3 <= time.monotonic() - start < 30
    assert failure.reason is FailureReason.CRASHED
    assert (failure.assignment_id, failure.client_id) == ("one", ONE)
    assert f"no trainer at {address} within 0.3 s" in failure.detail
    assert not client.healthy(timeout_seconds=0.1)
    with pytest.raises(TransportError, match="UNAVAILABLE"):
        client.status()


def test_a_trainer_that_goes_away_and_stays_away_is_a_failure(fake):
    reply = fake.ask(an_assignment())
    fake.trainer.started.wait(WAIT_SECONDS)
    fake.serving.stop()
    failure = reply.result(WAIT_SECONDS)
    assert failure.reason is FailureReason.CRASHED
    assert "no trainer at" in failure.detail
    assert "UNAVAILABLE: abandoned" in failure.detail


def test_a_trainer_that_comes_back_is_asked_once_more(fake):
    reply = fake.ask(an_assignment(), recovery_seconds=WAIT_SECONDS)
    fake.trainer.started.wait(WAIT_SECONDS)
    fake.serving.stop()
    second = Fake(fake.address)
    with served(second.make, fake.address):
        soon(lambda: second.trainer)
        second.trainer.gate.set()
        assert isinstance(reply.result(WAIT_SECONDS), Update)
    assert second.trainer.answered == ["one"]
    assert fake.trainer.answered == []


def test_a_message_that_ends_trainers_is_given_up(fake):
    reply = fake.ask(an_assignment(), recovery_seconds=WAIT_SECONDS)
    fake.trainer.started.wait(WAIT_SECONDS)
    fake.serving.stop()
    second = Fake(fake.address)
    with served(second.make, fake.address):
        soon(lambda: second.trainer)
        second.trainer.started.wait(WAIT_SECONDS)
    failure = reply.result(WAIT_SECONDS)
    assert failure.reason is FailureReason.CRASHED
    assert "went away 2 times" in failure.detail


def test_a_port_needs_the_token_and_health_does_not():
    fake, right = Fake(""), "right"
    with served(fake.make, "127.0.0.1:0", token=right) as serving:
        soon(lambda: fake.trainer)
        fake.trainer.gate.set()
        fake.address = serving.address
        assert not serving.address.endswith(":0")
        for wrong in ("wrong", "righ", "right2"):
            failure = fake.ask(an_assignment(), token=wrong).result(WAIT_SECONDS)
            assert failure.reason is FailureReason.CRASHED
            assert "UNAUTHENTICATED: wrong or missing token" in failure.detail
            stranger = TrainerClient(serving.address, wrong)
            assert stranger.healthy()
            with pytest.raises(TransportError, match="UNAUTHENTICATED"):
                stranger.reset()
        with (
            grpc.insecure_channel(serving.address) as channel,
            pytest.raises(grpc.RpcError, match="token"),
        ):
            next(raw_call(channel, an_assignment()))
        assert isinstance(fake.ask(an_assignment(), token=right).result(WAIT_SECONDS), Update)
        with pytest.raises(ConfigError, match="can be listened on"):
            serve(fake.make, serving.address, token=right, max_message_bytes=1)


@pytest.mark.parametrize(
    ("address", "token", "said"),
    [
        ("127.0.0.1:0", None, "give a token file"),
        ("0.0.0.0:0", "x", "loopback"),
        ("example.org:80", "x", "loopback"),
        ("127.0.0.1", "x", "loopback"),
        ("127.0.0.1:99999", "x", "loopback"),
        ("unix:", None, "1 to 107 bytes"),
        ("unix:/" + "x" * 107, None, "1 to 107 bytes"),
    ],
)
def test_addresses_others_could_reach_are_refused(address, token, said):
    for refuse in (
        lambda: TrainerClient(address, token),
        lambda: serve(Scripted, address, token=token, max_message_bytes=1),
    ):
        with pytest.raises(ConfigError, match=said):
            refuse()


def test_a_socket_is_its_owners_alone(address):
    path = Path(address.removeprefix("unix:"))
    with served(Scripted, address):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        with pytest.raises(ConfigError, match="nobody listens on"):
            serve(Scripted, address, max_message_bytes=1)
    assert not path.exists()
    path.parent.chmod(0o770)
    with pytest.raises(ConfigError, match="mode 770"):
        serve(Scripted, address, max_message_bytes=1)


def test_health_follows_the_trainers_life(fake):
    client = TrainerClient(fake.address)
    assert client.healthy()
    fake.trainer.listener = lambda progress: None  # work that cannot be asked to end
    reply = fake.ask(an_assignment())
    fake.trainer.started.wait(WAIT_SECONDS)
    assert client.healthy()
    stopping = fake.pool.submit(fake.serving.stop, WAIT_SECONDS)
    soon(lambda: not client.healthy())
    assert client.status().busy  # it can be asked, but takes no messages
    fake.trainer.gate.set()
    assert stopping.result(WAIT_SECONDS)
    assert isinstance(reply.result(WAIT_SECONDS), Update)


def test_both_ends_limit_what_they_make_room_for(address):
    fake, message = Fake(address), an_assignment()
    with served(fake.make, address, max_message_bytes=len(message) - 1):
        failure = fake.ask(message).result(WAIT_SECONDS)
    assert failure.reason is FailureReason.MALFORMED
    assert f"{len(message)} bytes was announced, at most {len(message) - 1}" in failure.detail
    with served(fake.make, address):
        fake.trainer.gate.set()
        failure = fake.ask(message, max_message_bytes=10).result(WAIT_SECONDS)
    assert failure.reason is FailureReason.MALFORMED
    assert "at most 10 are taken" in failure.detail


APP = """
import sys
from clients.client_app import app
assert "torch" not in sys.modules
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from strategies.wire import from_record, to_record
TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
message = Message(to_record(open(sys.argv[1], "rb").read()), dst_node_id=1, message_type="train")
node = {"partition-id": 0, "num-partitions": 1}
context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})
open(sys.argv[1], "wb").write(from_record(app(message, context).content))
heavy = {"torch", "transformers", "peft", "datasets", "pandas", "sklearn", "scipy", "ray"}
sys.exit(str(sorted(heavy & sys.modules.keys())) if heavy & sys.modules.keys() else 0)
"""


@pytest.mark.parametrize("port", [False, True])
def test_the_client_app_asks_the_trainer_it_is_told_of_and_loads_no_torch(address, tmp_path, port):
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "message").write_bytes(an_assignment())
    fake = Fake(address)
    with served(fake.make, "127.0.0.1:0" if port else address, "secret" if port else None) as here:
        soon(lambda: fake.trainer)
        fake.trainer.gate.set()
        environment = {"PERENNIAL_TRAINER": here.address, "PYTHONPATH": str(REPOSITORY)}
        if port:
            environment["PERENNIAL_TRAINER_TOKEN_FILE"] = str(tmp_path / "token")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", APP, str(tmp_path / "message")],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert isinstance(decode_result((tmp_path / "message").read_bytes()), Update)
    assert fake.trainer.answered == ["one"]


def test_a_stop_waits_no_longer_than_it_says(fake):
    fake.trainer.listener = lambda progress: None  # work that cannot be asked to end
    reply = fake.ask(an_assignment())
    fake.trainer.started.wait(WAIT_SECONDS)
    assert not fake.serving.stop(0.1)
    assert isinstance(reply.result(WAIT_SECONDS), ClientFailure)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--address", "0.0.0.0:1"], "loopback"),
        (["--address", "127.0.0.1:0"], "token file"),
        (["--address", "127.0.0.1:0", "--token-file", "/dev/null"], "one line of ASCII"),
        (["--address", "unix:/x", "--settings", "/none.json"], "/none.json"),
    ],
)
def test_what_cannot_be_served_ends_with_code_2(tmp_path, capsys, monkeypatch, options, said):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    path = tmp_path / "settings.json"
    path.write_text('{"cache_folder": "c", "state_folder": "s"}')
    assert main(["--settings", str(path), *options]) == 2
    assert said in capsys.readouterr().err
