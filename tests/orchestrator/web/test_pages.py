"""Every page on real stored runs; what people wrote stays text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event

from orchestrator.store import SqlRunStore
from tests.contract.test_run_store import new_run
from tests.orchestrator.recorded_run import CLIENTS, KINDS
from tests.orchestrator.web.conftest import store_of

HOSTILE = "<script>alert('x')</script>"


def text_of(client, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/?q=intents&status=completed&sort=acc&order=asc&limit=1",
        "/runs/{run}",
        "/runs/{run}/rounds?first=3&limit=4",
        "/runs/{run}/rounds/3",
        "/runs/{run}/events",
        "/runs/{run}/clients/{client}",
        "/clients",
        "/clients?q=client-0",
        "/clients/{client}",
        "/compare",
        "/compare?run={run}&run={other}",
        "/strategies",
        "/login",
    ],
)
def test_every_page_is_whole(client, runs, path):
    first, second, _ = runs
    page = text_of(client, path.format(run=first, other=second, client=CLIENTS[0]))
    assert page.rstrip().endswith("</html>")
    assert "<h1>" in page
    assert not re.search(r"<script(?! src=\"/static/)|\sstyle=|\son\w+=|javascript:", page)


def test_the_list_finds_by_text_status_and_tag_and_pages(client, home, runs):
    first, second, under_way = runs
    store_of(home).tag(first, add=["paper"], remove=[])
    assert first in text_of(client, "/?tag=paper")
    assert second not in text_of(client, "/?tag=paper")
    assert under_way in text_of(client, "/?status=running")
    assert first not in text_of(client, "/?status=running")
    page = text_of(client, "/?limit=2")
    assert "offset=2" in page
    assert first not in page


def test_a_run_page_shows_matrix_clients_and_where_its_stream_goes_on(client, home, runs):
    page = text_of(client, f"/runs/{runs[2]}")
    pulse = store_of(home).pulse(runs[2])
    assert f"/stream?after=6.{pulse.last_event}" in page
    assert "data-live=" in page
    assert all(each in page for each in CLIENTS)
    assert "banking" in page
    kinds = re.findall(
        r'<a href="/runs/\S+/clients/\S+">\S+</a></th><td class="left">(.*?)</td>', page
    )
    assert kinds == [KINDS[i % 3] for i in range(len(CLIENTS))]
    for path in (f"/runs/{runs[0]}/clients/{CLIENTS[2]}", f"/clients/{CLIENTS[2]}"):
        assert "gpu" in text_of(client, path)


def test_names_that_want_to_be_code_are_text(client, home):
    run_id = new_run(home.store(), name=HOSTILE, config={"seed": 1, "note": HOSTILE}).run_id
    store_of(home).tag(run_id, add=[HOSTILE], remove=[])
    for path in ("/", f"/runs/{run_id}", f"/compare?run={run_id}", f"/?q={HOSTILE}"):
        assert HOSTILE not in text_of(client, path)


def test_what_is_not_there_is_a_page_too(client, runs):
    for path in ("/runs/nothing", f"/runs/{runs[0]}/rounds/999", "/clients/nobody", "/nowhere"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert '<p class="code">404</p>' in answer.text


def test_an_abbreviated_id_leads_to_the_whole_one(client, runs):
    answer = client.get("/runs/latest")
    assert (answer.status_code, answer.headers["location"]) == (307, f"/runs/{runs[2]}")


@pytest.mark.parametrize(
    "path",
    [
        "/runs/{0}",
        "/compare?run={0}&run={1}",
        "/api/v1/runs/{0}",
        "/api/v1/runs/{0}/clients",
        "/metrics",
    ],
)
def test_what_grows_with_replies_is_not_read(client, home, runs, path):
    asked = list[str]()
    with listening(store_of(home), asked):
        assert client.get(path.format(*runs)).status_code == 200
    read = {table for text in asked for table in re.findall(r"(?:FROM|JOIN) (\w+)", text)}
    assert "rounds" in read
    assert not read & {"replies", "scores"}


@contextmanager
def listening(store: SqlRunStore, asked: list[str]) -> Iterator[None]:
    def note(_connection, _cursor, statement, *_rest) -> None:
        asked.append(statement)

    engine = store._sessions.engine
    event.listen(engine, "before_cursor_execute", note)
    yield
    event.remove(engine, "before_cursor_execute", note)
