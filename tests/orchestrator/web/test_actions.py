"""Actions do what the command line does: tag, resume in a process of its own, delete."""

from __future__ import annotations

import pytest

from orchestrator.conduct import FLOWER_RUN, submit
from orchestrator.store.base import RunStatus
from strategies.errors import RunNotFoundError
from tests.conftest import tiny_config
from tests.contract.test_run_store import new_run
from tests.orchestrator.web.conftest import TOKEN
from tests.orchestrator.web.test_security import BEARER, log_in


def act(client, run_id: str, **form: str):
    return client.post(f"/runs/{run_id}/actions", data={"csrf": log_in(client), **form})


def test_tags_are_given_and_taken(client, home, runs):
    path = f"/api/v1/runs/{runs[0]}/tags"
    answer = client.post(path, headers=BEARER, json={"add": ["b", " a "], "remove": []})
    assert answer.json()["message"] == "tagged a, b"
    answer = client.post(path, headers=BEARER, json={"remove": ["b", "never"]})
    assert home.store().get_run(runs[0]).tags == ("a",)
    assert client.post(path, headers=BEARER, json={"add": [" "]}).status_code == 400
    assert client.post(path, headers=BEARER, json={"ad": ["x"]}).status_code == 422
    assert act(client, runs[0], action="tag", tag="by form").status_code == 303
    assert act(client, runs[0], action="untag", tag="a").status_code == 303
    assert home.store().get_run(runs[0]).tags == ("by form",)


def test_a_run_is_deleted_by_its_whole_id_alone(client, home, runs):
    assert client.delete("/api/v1/runs/latest", headers=BEARER).status_code == 400
    assert act(client, runs[0], action="delete", confirm="yes").status_code == 400
    assert act(client, runs[0], action="delete", confirm=runs[0]).status_code == 303
    with pytest.raises(RunNotFoundError):
        home.store().get_run(runs[0])
    assert client.delete(f"/api/v1/runs/{runs[1]}", headers=BEARER).json()["status"] == "deleted"


def test_what_cannot_be_resumed_is_refused_with_the_reason(client, home, runs):
    answer = client.post(f"/api/v1/runs/{runs[0]}/resume", headers=BEARER)
    assert answer.status_code == 409
    assert "completed" in answer.json()["detail"]
    elsewhere = new_run(home.store(), environment={FLOWER_RUN: "7"}).run_id
    answer = client.post(f"/api/v1/runs/{elsewhere}/resume", headers=BEARER)
    assert answer.status_code == 409
    assert "--on HOST:PORT" in answer.json()["detail"]
    assert act(client, runs[0], action="dance").status_code == 400


@pytest.mark.slow
def test_a_resumed_run_is_carried_to_its_end_by_a_process_of_its_own(client, home):
    import time

    run_id = submit(tiny_config(), home)
    answer = client.post(f"/api/v1/runs/{run_id}/resume", headers=BEARER)
    assert answer.json()["message"] == "resumed"
    deadline = time.monotonic() + 300
    while home.store().get_run(run_id).status is not RunStatus.COMPLETED:
        assert time.monotonic() < deadline, home.store().get_run(run_id)
        time.sleep(0.5)
    log = (home.run_folder(run_id) / "run.log").read_text()
    assert TOKEN not in log
