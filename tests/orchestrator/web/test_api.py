"""The API says what the command line says, in the types it announces."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO

import pytest

from orchestrator.summary import compare, run_listing, show
from orchestrator.web import documents
from orchestrator.web.schema import model_of
from tests.orchestrator.recorded_run import CLIENTS
from tests.orchestrator.test_summary import faults
from tests.orchestrator.web.conftest import store_of


def answer(client, path: str):
    response = client.get(f"/api/v1{path}")
    assert response.status_code == 200, response.text
    return response.json()


def told_by_the_command_line(home, run_id):
    store = home.store()
    return json.loads(
        json.dumps(show(store.get_run(run_id), store.rounds(run_id), store.events(run_id)))
    )


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_run_is_what_the_command_line_shows_field_by_field(client, home, runs, place):
    run_id = runs[place]
    expected = told_by_the_command_line(home, run_id)
    found = answer(client, f"/runs/{run_id}")
    found |= {
        "rounds": [
            {
                **r,
                "replies": answer(client, f"/runs/{run_id}/rounds/{r['step']}/replies")["replies"],
            }
            for r in answer(client, f"/runs/{run_id}/rounds")["rounds"]
        ],
        "clients": answer(client, f"/runs/{run_id}/clients")["clients"],
        "events": [
            {k: v for k, v in event.items() if k != "number"}
            for event in answer(client, f"/runs/{run_id}/events?limit=500")["events"]
        ],
    }
    assert found.keys() == expected.keys()
    for field in set(expected) - {"duration_seconds"}:  # of a run under way, it grows
        assert found[field] == expected[field], field


def test_the_listing_and_the_comparison_are_the_command_lines(client, home, runs):
    store = home.store()
    page = answer(client, "/runs")
    assert [r["run_id"] for r in page["runs"]] == [r.run_id for r in store.list_runs()]
    expected = json.loads(json.dumps(run_listing(store.list_runs())))
    assert page["runs"][1:] == expected["runs"][1:]  # the first is under way
    shows = [told_by_the_command_line(home, each) for each in runs[:2]]
    assert answer(client, f"/compare?run={runs[0]}&run={runs[1]}") == json.loads(
        json.dumps(compare(shows))
    )


def test_documents_have_exactly_the_shape_they_announce(client, runs):
    run = runs[0]
    for kind, path in (
        (documents.RunsPage, "/runs?limit=2"),
        (documents.RoundsPage, f"/runs/{run}/rounds?limit=3"),
        (documents.RepliesDocument, f"/runs/{run}/rounds/3/replies"),
        (documents.ClientsDocument, f"/runs/{run}/clients"),
        (documents.ClientDocument, f"/runs/{run}/clients/{CLIENTS[2]}"),
        (documents.ClientRunsPage, f"/clients/{CLIENTS[2]}"),
        (documents.EventsPage, f"/runs/{run}/events?limit=2"),
        (documents.ConfigDocument, f"/runs/{run}/config"),
        (documents.Catalog, "/strategies"),
        (documents.Health, "/health"),
    ):
        found = answer(client, path)
        assert faults(kind, found) == [], path
        model_of(kind).model_validate(found)


def test_openapi_describes_every_path_with_its_document(client):
    schema = client.get("/api/v1/openapi.json").json()
    reads = {path: each["get"] for path, each in schema["paths"].items() if "get" in each}
    assert {"/api/v1/runs", "/api/v1/runs/{run_id}", "/api/v1/runs/{run_id}/stream"} <= reads.keys()
    overview = schema["components"]["schemas"]["Overview"]
    assert {"acc", "accuracy_matrix", "tags"} <= set(overview["required"])
    content = reads["/api/v1/runs/{run_id}"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"]["$ref"].endswith("/Overview")


def test_pages_of_rounds_and_events_follow_one_another(client, home, runs):
    first = answer(client, f"/runs/{runs[0]}/rounds?limit=15")
    rest = answer(client, f"/runs/{runs[0]}/rounds?first={first['next']}&limit=15")
    steps = [r["step"] for r in first["rounds"] + rest["rounds"]]
    assert (steps, rest["next"], rest["total"]) == (list(range(21)), None, 21)
    newest = answer(client, f"/runs/{runs[0]}/events?before=9999999&limit=2")
    assert newest["events"][0]["message"] == "completed: all steps done"
    older = answer(client, f"/runs/{runs[0]}/events?before={newest['next']}&limit=500")
    told = [e["message"] for e in newest["events"] + older["events"]]
    assert told[::-1] == [e.message for e in home.store().events(runs[0])]


def test_configuration_says_what_differs_from_the_defaults(client, home):
    from tests.conftest import tiny_config
    from tests.contract.test_run_store import new_run

    config = tiny_config().model_dump(mode="json")
    run = new_run(home.store(), config=config).run_id
    settings = {s["key"]: s for s in answer(client, f"/runs/{run}/config")["settings"]}
    assert (settings["federation.clients"]["value"], settings["federation.clients"]["differs"]) == (
        3, True,
    )  # fmt: skip
    assert settings["seed"]["differs"] is False
    assert settings["learning.methods"]["differs"] is True
    odd = new_run(home.store(), config={"no": {"such": 1}}).run_id
    (only,) = answer(client, f"/runs/{odd}/config")["settings"]
    assert (only["key"], only["differs"]) == ("no.such", None)


def test_what_cannot_be_answered_says_why(client, runs):
    for path, status in (
        ("/runs/nothing", 404),
        (f"/runs/{runs[0]}/rounds/99/replies", 404),
        (f"/runs/{runs[0]}/clients/nobody", 404),
        ("/runs?limit=0", 422),
        ("/runs?status=lost", 422),
        ("/compare", 422),
        (f"/runs/{runs[0]}/adapter", 404),
    ):
        response = client.get(f"/api/v1{path}")
        assert response.status_code == status, path
        assert response.json()["detail"]


def test_the_adapter_comes_as_a_zip_file_and_nothing_from_elsewhere(client, home, runs, tmp_path):
    folder = home.run_folder(runs[0]) / "adapters" / "task-1"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 9000)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "link").symlink_to("/etc/passwd")
    home.store().set_adapter_path(runs[0], str(folder))
    response = client.get(f"/runs/{runs[0]}/adapter.zip")
    assert response.headers["content-disposition"].endswith('-task-1.zip"')
    with zipfile.ZipFile(BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            "task-1/adapter_config.json", "task-1/adapter_model.safetensors",
        ]  # fmt: skip
        data = archive.read("task-1/adapter_model.safetensors")
    assert data == bytes(range(256)) * 9000
    (tmp_path / "elsewhere").mkdir()
    home.store().set_adapter_path(runs[0], str(tmp_path / "elsewhere"))
    assert client.get(f"/runs/{runs[0]}/adapter.zip").status_code == 404


def test_the_report_is_downloaded_once_it_is_written(client, home, runs):
    assert client.get(f"/runs/{runs[0]}/report.html").status_code == 404
    path = home.run_folder(runs[0]) / "report.html"
    path.parent.mkdir(parents=True)
    path.write_text("<p>report</p>")
    response = client.get(f"/runs/{runs[0]}/report.html")
    assert response.text == "<p>report</p>"
    assert response.headers["content-disposition"].startswith("attachment")


def test_tags_are_in_every_document_of_a_run(client, home, runs):
    store_of(home).tag(runs[0], add=["b", "a"], remove=[])
    assert answer(client, f"/runs/{runs[0]}")["tags"] == ["a", "b"]
    assert [r["run_id"] for r in answer(client, "/runs?tag=a")["runs"]] == [runs[0]]
