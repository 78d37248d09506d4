"""What a trainer tells Prometheus: by its bench, by a real training, and as a process."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from clients.answering import Progress
from clients.bench import Bench
from clients.jobs import BenchStatus, BusyError, Job
from clients.settings import ClientSettings
from clients.telemetry import TrainerMetrics, expose
from clients.trainer import LocalTrainer
from orchestrator.deployment.client import _programs
from orchestrator.deployment.flower import Address
from orchestrator.deployment.reading import NodeSigns
from strategies.errors import ConfigError
from strategies.types import ClientFailure, ClientId, FailureReason
from strategies.wire import encode_assignment, encode_result
from tests.clients.test_trainer import Lab
from tests.clients.trainers import Scripted, TrainerProcess, a_folder, an_assignment
from tests.conftest import REPOSITORY, tiny_config
from tests.orchestrator.deployment.test_reading import options

ONE = ClientId("client-0")
STATUS = BenchStatus(model_loads=3, runs_served=1, answers=2, busy=True, idle_seconds=0.0)


@pytest.fixture
def metrics() -> TrainerMetrics:
    made = TrainerMetrics()
    made.watch(lambda: STATUS, lambda: 12_345)
    return made


def families(text: str):
    return list(text_string_to_metric_families(text))


def values(metrics: TrainerMetrics) -> dict[str, float]:
    """Samples by name and, in braces, the value of their label."""
    return {
        sample.name.removeprefix("perennial_trainer_")
        + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in families(generate_latest(metrics.registry).decode())
        for sample in family.samples
    }


def a_job(message: bytes = b"12345") -> Job:
    return Job(ONE, message, b"", None)


def a_failure(reason: FailureReason) -> bytes:
    return encode_result(
        ClientFailure(assignment_id="a", client_id=ONE, reason=reason, detail="why")
    )


def test_steps_examples_and_tokens_are_added_up(metrics):
    metrics.heard(Progress(phase="load"))
    assert values(metrics)["trainings_under_way"] == 0
    for seconds in (0.02, 0.3):
        metrics.heard(
            Progress(phase="train", step=1, steps=2, seconds=seconds, examples=8, tokens=100)
        )
    found = values(metrics)
    assert found["trainings_under_way"] == 1
    assert found["step_seconds_count"] == 2
    assert found["step_seconds_sum"] == pytest.approx(0.32)
    assert found["step_seconds_bucket{0.025}"] == 1
    assert (found["examples_total"], found["tokens_total"]) == (16, 200)


def test_answers_failures_and_bytes(metrics):
    metrics.ended(a_job(), failure := a_failure(FailureReason.NO_ROOM), None)
    metrics.ended(a_job(), None, "abandoned")
    metrics.ended(a_job(), None, "ValueError: anything")
    metrics.refused()
    found = values(metrics)
    assert found["answers_total"] == 1
    assert found["failures_total{no-room}"] == 1
    assert found["failures_total{abandoned}"] == 1
    assert found["failures_total{error}"] == 1
    assert found["failures_total{busy}"] == 1
    assert found["bytes_total{down}"] == 15
    assert found["bytes_total{up}"] == len(failure)
    assert found["trainings_under_way"] == 0


def test_the_bench_and_the_device_are_asked(metrics):
    found = values(metrics)
    assert (found["model_loads_total"], found["device_memory_bytes"]) == (3, 12_345)
    assert time.time() - found["start_timestamp_seconds"] < 600


def test_no_label_says_whose_it_is(metrics):
    metrics.ended(a_job(), a_failure(FailureReason.CRASHED), None)
    text = generate_latest(metrics.registry).decode()
    assert ONE not in text
    for family in families(text):
        assert family.name.startswith("perennial_trainer_")
        assert all(
            sample.labels.keys() <= {"reason", "direction", "le"} for sample in family.samples
        )


def test_a_bench_tells_of_its_work(metrics):
    scripted = []
    bench = Bench(
        lambda listener: scripted.append(Scripted(listener)) or scripted[0], observer=metrics
    )
    job = bench.submit(ONE, an_assignment("one"))
    while not scripted:
        time.sleep(0.01)
    assert scripted[0].started.wait(60)
    with pytest.raises(BusyError):
        bench.submit(ONE, an_assignment("two"))
    scripted[0].gate.set()
    list(bench.follow(job, lambda: True))
    found = values(metrics)
    assert found["failures_total{busy}"] == 1
    assert found["answers_total"] == 1
    assert found["bytes_total{up}"] == len(job.answer)
    bench.close(10)


def test_a_training_tells_of_each_step(tmp_path):
    heard = list[Progress]()
    lab = Lab(tmp_path, tiny_config())
    lab.trainer = LocalTrainer(
        ClientSettings(cache_folder=tmp_path / "cache", state_folder=tmp_path / "state"),
        listener=heard.append,
    )
    order = lab.plan().orders[0]
    lab.trainer.answer(
        order.assignment.client_id, encode_assignment(order.assignment, order.tensors)
    )
    steps = [progress for progress in heard if progress.seconds is not None]
    assert [progress.step for progress in steps] == [1, 2, 3]
    assert all(0 < progress.seconds < 600 for progress in steps)
    assert [progress.examples for progress in steps] == [8, 8, 8]
    assert all(progress.tokens == 0 for progress in steps)  # images have none


def test_a_taken_port_is_a_fault_with_a_name(metrics):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="--metrics-port"):
            expose(metrics, "127.0.0.1", taken.getsockname()[1])


def test_a_client_passes_the_port_on_only_if_told(tmp_path):
    trainer, _ = _programs(options(tmp_path), NodeSigns(), "unix:/t.sock")
    assert "--metrics-port" not in trainer.command
    at = Address(host="127.0.0.1", port=9111)
    trainer, _ = _programs(options(tmp_path, metrics=at), NodeSigns(), "unix:/t.sock")
    assert trainer.command[-4:] == ["--metrics-host", "127.0.0.1", "--metrics-port", "9111"]


def test_telemetry_loads_no_torch():
    code = "import sys, clients.telemetry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_has_nothing_to_say(metrics):
    found = subprocess.run(
        ["promtool", "check", "metrics"],
        input=generate_latest(metrics.registry),
        capture_output=True,
        check=False,
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


@pytest.mark.slow
def test_a_process_serves_on_loopback_when_told():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with a_folder() as folder, TrainerProcess(folder, "--metrics-port", str(port)) as process:
        assert process.ready().startswith("trainer listening on ")
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=60) as answer:
            text = answer.read().decode()
    assert "perennial_trainer_device_memory_bytes" in text
    assert "perennial_trainer_model_loads_total 0.0" in text
