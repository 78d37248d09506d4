"""The command as people use it: in a process of its own, in any folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.restarts import RESTARTED
from orchestrator.store import open_store
from orchestrator.store.base import RunStatus
from tests.conftest import REPOSITORY, TINY

pytestmark = pytest.mark.e2e


@pytest.fixture
def perennial(tmp_path):
    """Run the command in an empty folder with a data directory of its own."""
    folder = tmp_path / "work"
    folder.mkdir()
    environment = os.environ | {
        "PERENNIAL_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(REPOSITORY),
    }
    environment.pop("PERENNIAL_DATABASE", None)

    def run(*arguments: str, start: bool = False):
        command = [sys.executable, "-c", "from orchestrator.cli import main; main()", *arguments]
        kwargs = {"cwd": folder, "env": environment, "text": True, "stdout": subprocess.PIPE}
        if start:
            # As from a terminal: whoever runs the tests in the background has SIGINT ignored, and
            # what is ignored stays so in child processes.
            return subprocess.Popen(
                command,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                **kwargs,
            )
        return subprocess.run(command, stderr=subprocess.PIPE, check=False, timeout=300, **kwargs)

    run.folder = folder
    run.store = lambda: open_store(f"sqlite:///{tmp_path / 'home' / 'perennial.db'}")
    return run


@pytest.fixture
def run_file(perennial) -> Path:
    import tomli_w

    path = perennial.folder / "tiny.toml"
    path.write_text(tomli_w.dumps(TINY))
    return path


def test_a_run_from_file_to_adapter(perennial, run_file):
    done = perennial("run", "tiny.toml")
    assert done.returncode == 0, done.stderr
    assert "ACC" in done.stdout
    assert "forgetting" in done.stdout
    assert "report.html" in done.stdout
    listing = json.loads(perennial("runs", "--format", "json").stdout)["runs"]
    shown = json.loads(perennial("show", "latest", "--format", "json").stdout)
    assert listing[0]["run_id"] == shown["run_id"]
    assert listing[0]["acc"] == pytest.approx(shown["acc"])
    assert Path(shown["report_path"]).read_text().startswith("<!doctype html>")
    assert "low" in perennial("show", shown["run_id"]).stdout
    assert shown["run_id"] in perennial("runs").stdout

    second = perennial("run", "tiny.toml", "--set", "learning.methods=[{name='finetune'}]")
    assert second.returncode == 0
    compared = perennial(
        "compare", shown["run_id"], "latest", "--html", "c.html", "--format", "json"
    )
    assert [row["key"] for row in json.loads(compared.stdout)["config"]] == ["learning.methods"]
    assert "<svg" in (perennial.folder / "c.html").read_text()
    assert "learning.methods" in perennial("compare", shown["run_id"], "latest").stdout

    assert perennial("export", shown["run_id"], "--to", "a").returncode == 0
    assert (perennial.folder / "a" / "adapter_config.json").is_file()
    assert perennial("export", shown["run_id"], "--to", "m", "--merged").returncode == 0
    assert (perennial.folder / "m" / "merged.safetensors").is_file()
    again = perennial("export", shown["run_id"], "--to", "a")
    assert again.returncode == 2
    assert "not empty" in again.stderr


def test_bad_input_is_exit_code_2_with_every_fault(perennial, run_file):
    done = perennial("run", "tiny.toml", "--set", "seeed=1", "--set", "strategy.rank.rank=0")
    assert done.returncode == 2
    assert "did you mean 'seed'?" in done.stderr
    assert done.stdout == ""
    assert json.loads(perennial("runs", "--format", "json").stdout)["runs"] == []
    for arguments, words in {
        ("run", "none.toml"): "perennial init",
        ("show", "nothing"): "no runs yet",
        ("strategies", "exakt"): "did you mean 'exact'?",
        ("init", "digit"): "did you mean 'digits'?",
    }.items():
        done = perennial(*arguments)
        assert done.returncode == 2, arguments
        assert words in done.stderr


def test_missing_data_fails_the_run_and_says_what_is_missing(perennial, run_file):
    done = perennial(
        "run", "tiny.toml", "--set", "data={source='jsonl',train='no.jsonl',test='no.jsonl'}",
        "--set", "model={task='sequence-classification',name='from-config',architecture='bert'}",
        "--set", "model.tokenizer=bytes",
    )  # fmt: skip
    assert done.returncode == 1
    assert "no.jsonl" in done.stdout + done.stderr


def test_init_strategies_schema_and_doctor(perennial):
    assert "next: perennial run digits.toml" in perennial("init", "digits").stdout
    assert perennial("init", "digits").returncode == 2
    catalog = json.loads(perennial("strategies", "--format", "json").stdout)["strategies"]
    assert {"all", "fixed", "exact", "er", "reservoir"} <= {entry["name"] for entry in catalog}
    assert all(entry["summary"] for entry in catalog)
    assert "properties" in json.loads(perennial("config", "schema").stdout)
    checks = json.loads(perennial("doctor", "--format", "json").stdout)["checks"]
    assert {"run database", "disk", "memory"} <= {check["check"] for check in checks}
    assert "already at 0004" in perennial("db", "upgrade").stdout


def test_a_data_directory_that_cannot_be_written_is_named(perennial, monkeypatch, tmp_path):
    (tmp_path / "home").write_text("a file, not a folder")
    done = perennial("runs")
    assert done.returncode == 1
    assert "set PERENNIAL_HOME" in done.stderr


EVERYTHING_PLANNED = [
    "strategy.layer_selection={name='selective', blocks=1}",
    "strategy.rank={name='spectral', rank=4}",
    "strategy.compression=[{name='topk', density=0.5}, {name='int8'}]",
    "strategy.downlink=fp16",
    "federation.deadline_seconds=20",
    "links={name='markov', uplink_bytes_per_second=[3e3, 6e4], flops_per_second=1e9}",
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], EVERYTHING_PLANNED], ids=["plain", "planned"])
def test_ray_gives_the_same_bits_as_one_process(perennial, run_file, settings):
    """Through Flower's messages and a real ClientApp."""
    digests, changes = [], [part for setting in settings for part in ("--set", setting)]
    for transport in ("in-process", "ray"):
        done = perennial("run", "tiny.toml", "--set", f"federation.transport={transport}", *changes)
        assert done.returncode == 0, done.stdout + done.stderr
        shown = json.loads(perennial("show", "latest", "--format", "json").stdout)
        digests.append(
            (
                shown["checkpoint"],
                shown["accuracy_matrix"],
                [r["bytes_down"] for r in shown["rounds"]],
            )
        )
    assert digests[0] == digests[1]


def run_under_way(store, rounds: int, restarts: int = 0):
    """The newest run, once so many of its rounds are committed after so many restarts."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        for newest in store.list_runs(limit=1):
            begun = sum(event.kind == RESTARTED for event in store.events(newest.run_id))
            running = newest.status is RunStatus.RUNNING and begun == restarts
            if running and newest.progress.get("rounds", 0) >= rounds:
                return newest
        time.sleep(0.1)
    raise AssertionError(f"no run got as far as {rounds} rounds after {restarts} restarts")


LONGER = ("--set", "learning.rounds_per_task=15", "--set", "federation.transport=in-process")


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["in-process", "ray"])
def test_ctrl_c_stops_cleanly_and_resume_ends_with_the_same_bits(perennial, run_file, transport):
    changes = (*LONGER, "--set", f"federation.transport={transport}")
    whole = perennial("run", "tiny.toml", *LONGER)
    assert whole.returncode == 0
    expected = json.loads(perennial("show", "latest", "--format", "json").stdout)["checkpoint"]
    process = perennial("run", "tiny.toml", *changes, start=True)
    newest = run_under_way(perennial.store(), rounds=2)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert f"perennial resume {newest.run_id}" in output
    resumed = perennial("resume", newest.run_id)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    shown = json.loads(perennial("show", newest.run_id, "--format", "json").stdout)
    assert shown["checkpoint"] == expected


def kill_the_runs_process(command: subprocess.Popen) -> None:
    """As the kernel does when memory runs out: that process, and nothing it started."""
    children = psutil.Process(command.pid).children()
    (child,) = [x for x in children if "orchestrator.child" in x.cmdline()]
    child.kill()


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["in-process", "ray"])
def test_a_run_whose_process_is_killed_is_restarted_and_ends_with_the_same_bits(
    perennial, run_file, transport
):
    whole = perennial("run", "tiny.toml", *LONGER)
    assert whole.returncode == 0
    expected = json.loads(perennial("show", "latest", "--format", "json").stdout)["checkpoint"]
    where = ("--set", f"federation.transport={transport}")
    process = perennial("run", "tiny.toml", *LONGER, *where, "--restarts", "2", start=True)
    killed = run_under_way(perennial.store(), rounds=2)
    kill_the_runs_process(process)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "restart 1 of 2 in 1 s: its process ended with code -9" in output
    assert "task 2 of 2 (high), scoring all tasks" in output  # it was shown to its end
    shown = json.loads(perennial("show", killed.run_id, "--format", "json").stdout)
    assert (shown["status"], shown["checkpoint"]) == ("completed", expected)
    (restarted,) = [event for event in shown["events"] if event["kind"] == RESTARTED]
    assert restarted["data"]["attempt"] == 1
    assert "code -9" in restarted["message"]


@pytest.mark.slow
def test_restarts_that_are_used_up_end_the_command_as_interrupted(perennial, run_file):
    process = perennial("run", "tiny.toml", *LONGER, "--restarts", "1", start=True)
    store = perennial.store()
    first = run_under_way(store, rounds=1)
    kill_the_runs_process(process)
    run_under_way(store, rounds=first.progress["rounds"] + 1, restarts=1)
    kill_the_runs_process(process)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert f"perennial resume {first.run_id}" in output
    assert store.get_run(first.run_id).status is RunStatus.INTERRUPTED


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_ends_the_command_gets_no_restart(perennial, run_file, number):
    process = perennial("run", "tiny.toml", *LONGER, "--restarts", "3", start=True)
    store = perennial.store()
    run = run_under_way(store, rounds=1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    ended = store.get_run(run.run_id)
    assert (ended.status, ended.reason) == (RunStatus.INTERRUPTED, "asked to stop")
    assert not any(event.kind == RESTARTED for event in store.events(run.run_id))
