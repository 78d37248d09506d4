"""Where forgetting happened, on a run small enough to work out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.forgetting import explained
from orchestrator.report.forgetting import explain
from orchestrator.summary import show
from tests.contract.test_run_store import a_reply, a_round
from tests.orchestrator.recorded_run import CLIENTS, TASKS, recorded_run
from tests.orchestrator.test_metrics import score

ROWS = {  # after task: (client, correct of 10 per task)
    0: {"a": (9, 0, 0), "b": (8, 0, 0)},
    1: {"a": (8, 9, 0), "b": (10, 7, 0)},
    2: {"a": (3, 9, 9), "b": (8, 6, 9)},
}


def evaluation(after, rows):
    scores = tuple(
        score(client, after, task, correct, 10)
        for client, row in rows.items()
        for task, correct in enumerate(row)
    )
    return a_round(
        "run",
        2 * after + 1,
        kind="evaluate",
        task_index=after,
        scores=scores,
        replies=(),
        drift={},
    )


def training(after, drift, replies=()):
    return a_round(
        "run", 2 * after, task_index=after, drift=drift, scores=(), replies=tuple(replies)
    )


def trained(client, new, replayed, seconds):
    metrics = {"new": new, "replayed": replayed}
    return a_reply("run", 0, client, metrics=metrics, seconds={"train": seconds, "total": 99.0})


ROUNDS = [
    training(0, {"q": 0.2, "v": 0.1}, [trained("a", 30.0, 0.0, 4.0)]),
    evaluation(0, ROWS[0]),
    training(1, {"q": 0.2, "v": 0.5}, [trained("a", 10.0, 10.0, 6.0)]),
    evaluation(1, ROWS[1]),
    training(2, {"v": 0.3}, [trained("a", 5.0, 15.0, 8.0), trained("b", 30.0, 0.0, 1.0)]),
    evaluation(2, ROWS[2]),
]


def test_every_task_names_its_best_and_what_cost_it_most():
    first, second = explained(ROUNDS, 3)["tasks"]
    assert first == {
        "task": 0,
        "lost": pytest.approx(0.35),  # 18 of 20 after task 1, 11 now
        "best": pytest.approx(0.9),
        "best_after": 1,
        "final": pytest.approx(0.55),
        "costliest": 2,
        "costliest_drop": pytest.approx(0.35),
    }
    assert (second["task"], second["lost"]) == (1, pytest.approx(0.05))


def test_what_cost_most_is_the_largest_step_down_not_the_last():
    rows = [(9, 0, 0, 0), (4, 9, 0, 0), (5, 9, 9, 0), (3, 9, 9, 9)]
    rounds = [evaluation(after, {"a": row}) for after, row in enumerate(rows)]
    first = explained(rounds, 4)["tasks"][0]
    assert (first["costliest"], first["costliest_drop"]) == (1, pytest.approx(0.5))


def test_a_task_that_only_rose_was_cost_nothing():
    rounds = [evaluation(0, {"a": (5, 0)}), evaluation(1, {"a": (7, 9)})]
    (only,) = explained(rounds, 2)["tasks"]
    assert (only["lost"], only["best"]) == (pytest.approx(-0.2), 0.5)  # before the last row
    assert (only["costliest"], only["costliest_drop"]) == (None, None)


def test_clients_come_worst_first_with_the_task_they_lost_most_of():
    first, second = explained(ROUNDS, 3)["clients"]
    assert first == {
        "client_id": "a", "forgetting": pytest.approx(0.3), "task": 0,
        "task_lost": pytest.approx(0.6),
    }  # fmt: skip
    assert (second["client_id"], second["forgetting"]) == ("b", pytest.approx(0.15))


def test_groups_come_by_their_mean_drift_with_the_task_they_moved_furthest_in():
    assert explained(ROUNDS, 3)["groups"] == [
        {"group": "v", "drift": pytest.approx(0.3), "task": 1},
        {"group": "q", "drift": pytest.approx(0.2), "task": 0},
    ]


def test_replay_costs_its_share_of_every_training():
    replay = explained(ROUNDS, 3)["replay"]
    assert (replay["num_replayed"], replay["num_trained"]) == (25, 100)
    assert replay["share"] == pytest.approx(0.25)
    assert replay["seconds"] == pytest.approx(6.0 * 0.5 + 8.0 * 0.75)


def test_a_run_before_new_examples_were_counted_says_nothing_of_replay():
    old = [dataclasses.replace(ROUNDS[0], replies=(a_reply("run", 0, "a"),)), *ROUNDS[1:2]]
    assert explained(old, 3)["replay"]["share"] is None


def test_the_sentences_say_what_the_numbers_say():
    shown = show(*recorded_run(name="forgetful", kept=0.75))
    told = explain(shown)
    worst = shown["forgetting_explained"]["tasks"][0]
    assert told[0].startswith(f"“{TASKS[worst['task']]}” lost {100 * worst['lost']:.1f} points")
    assert f"Learning “{TASKS[worst['costliest']]}” cost it most" in told[0]
    losses = {c["client_id"]: c["forgetting"] for c in shown["clients"]}
    most = max(CLIENTS, key=losses.__getitem__)
    assert f"{most} forgot most, {100 * losses[most]:.1f} points" in " ".join(told)
    spread = shown["forgetting_over_clients"]
    assert spread["worst_decile"] == pytest.approx(max(losses.values()))
    assert spread["mean"] == pytest.approx(sum(losses.values()) / len(losses))
    assert any(t.startswith("Of the parts of the model, head moved most") for t in told)
    assert any("3570 (26.8%) were replayed" in t for t in told)


def test_the_worst_decile_of_forgetting_is_the_tenth_that_lost_most():
    """Client i of 25 loses i points of 30: the two worst lose 24 and 23."""
    run, _, events = recorded_run(name="many", kept=1.0)
    rounds = [
        a_round(
            run.run_id, 2 * after + 1, kind="evaluate", task_index=after, replies=(), drift={},
            scores=tuple(
                score(f"c{i:02}", after, task, 30 - i * (after > task), 30)
                for i in range(25)
                for task in range(after + 1)
            ),
        )
        for after in (0, 1)
    ]  # fmt: skip
    spread = show(run, rounds, events)["forgetting_over_clients"]
    assert spread["worst_decile"] == pytest.approx(23.5 / 30)
    assert spread["mean"] == pytest.approx(12 / 30)


def test_nothing_is_explained_before_there_is_anything():
    assert explain(show(*recorded_run()[:1], [], [])) == []
    run, rounds, events = recorded_run(kept=1.0)
    joint = [r for r in rounds if r.kind == "train" or r.task_index in (-1, 4)]
    assert not any("lost" in sentence for sentence in explain(show(run, joint, events)))
