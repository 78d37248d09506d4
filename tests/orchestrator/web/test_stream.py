"""The live stream tells what another process commits, misses nothing and ends with the run."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from orchestrator.store.base import RunStatus
from orchestrator.web.settings import WebSettings
from orchestrator.web.stream import Cursor, Watch, told
from tests.orchestrator.web.conftest import commit, store_of


def parsed(messages: list[str]) -> list[tuple[str, str, dict]]:
    """Kind, id and data of every message."""
    found = []
    for text in messages:
        fields = dict(line.split(": ", 1) for line in text.strip().split("\n"))
        found.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
    return found


def kinds(messages: list[str]) -> list[str]:
    return [kind for kind, _, _ in parsed(messages)]


def watch(home, run_id: str, cursor: str | None = None) -> Watch:
    return Watch(run_id, store_of(home), Cursor.read(cursor))


def test_what_is_committed_while_watching_is_told_once(home, runs):
    run = runs[2]
    stream = watch(home, run, f"6.{store_of(home).pulse(run).last_event}")
    assert kinds(stream.look()) == ["progress"]
    assert stream.look() == []
    commit(home, run, "now", first=7, last=9)
    home.store().append_event(run, "note", "hello")
    found = parsed(stream.look())
    assert [kind for kind, _, _ in found] == ["round", "round", "log"]
    assert [data["step"] for kind, _, data in found if kind == "round"] == [7, 8]
    assert stream.look() == []
    home.store().renew_lease(run, "me", timedelta(seconds=9), progress={"steps_done": 9})
    ((kind, _, data),) = parsed(stream.look())
    assert (kind, data["progress"]["steps_done"]) == ("progress", 9)


def test_who_comes_back_with_the_last_id_misses_nothing_and_hears_nothing_twice(home, runs):
    first = parsed(watch(home, runs[2]).look())
    rounds = [(number, data) for kind, number, data in first if kind == "round"]
    assert [data["step"] for _, data in rounds] == list(range(7))
    again = parsed(watch(home, runs[2], rounds[3][0]).look())
    assert [data["step"] for kind, _, data in again if kind == "round"] == [4, 5, 6]


def test_a_rewound_run_says_so_and_goes_on_from_there(home, runs):
    stream = watch(home, runs[2])
    stream.look()
    home.store().rewind(runs[2], 4)
    found = parsed(stream.look())
    assert ("rewound", {"last_step": 3}) in [(kind, data) for kind, _, data in found]
    commit(home, runs[2], "now", first=4, last=5)
    assert [d["step"] for k, _, d in parsed(stream.look()) if k == "round"] == [4]


def test_a_stream_ends_when_the_run_does_and_not_before_all_is_told(home, runs):
    stream = watch(home, runs[2])
    stream.look()
    assert not stream.ended
    commit(home, runs[2], "now", first=7, last=8)
    home.store().transition(
        runs[2], RunStatus.INTERRUPTED, expected=[RunStatus.RUNNING], reason="stopped"
    )
    found = parsed(stream.look())
    assert found[-1][0] == "end"
    assert found[-1][2] == {"status": "interrupted", "reason": "stopped"}
    assert "round" in [kind for kind, _, _ in found]
    assert stream.ended


def test_a_deleted_run_ends_its_stream(home, runs):
    stream = watch(home, runs[0])
    home.store().delete_run(runs[0])
    assert parsed(stream.look())[0][2]["status"] == "deleted"
    assert stream.ended


def test_over_http_it_is_a_stream_of_events_from_the_last_id_on(client, runs):
    answer = client.get(
        f"/api/v1/runs/{runs[0]}/stream?after=0.0", headers={"Last-Event-ID": "18.999999"}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.text.startswith("retry: ")
    assert answer.text.count("event: round") == 2
    assert answer.text.rstrip().split("event: ")[-1].startswith("end")
    assert client.get("/api/v1/runs/nothing/stream").status_code == 404


@pytest.mark.parametrize("text", [None, "", "x", "1", "x.y", "-9.-9"])
def test_an_odd_id_means_the_beginning(text):
    assert Cursor.read(text).event == 0


async def drained(watch: Watch, settings: WebSettings, enough: int) -> list[str]:
    found = []
    async for text in told(watch, settings):
        found.append(text)
        if len(found) >= enough:
            break
    return found


def test_silence_is_broken_by_comments_and_a_closing_server_ends_it(home, runs):
    import anyio

    quick = WebSettings(poll_seconds=0.001, heartbeat_seconds=0.002)
    found = anyio.run(drained, watch(home, runs[2]), quick, 4)
    assert ": still there\n\n" in found
    closing = WebSettings(closing=lambda: True)
    assert anyio.run(drained, watch(home, runs[2]), closing, 99) == ["retry: 2000\n\n"]


def test_no_more_streams_than_there_is_room_for(client, runs):
    client.app.state.streams.most = 0
    assert client.get(f"/api/v1/runs/{runs[0]}/stream").status_code == 503
