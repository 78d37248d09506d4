"""The release gate: what is withheld, why, and that the record alone decides."""

from __future__ import annotations

import pytest

from orchestrator.releases import described, last_release, verdicts
from orchestrator.sections import Requirements
from strategies.errors import ConfigError
from tests.contract.test_run_store import a_round
from tests.orchestrator.builders import a_config
from tests.orchestrator.test_metrics import score

FLIPS = ("num_lost", "num_gained", "num_compared")
NAMES = ("banking", "travel", "home")


def stage(task, row, flips=None):
    """The evaluation after ``task``: correct of 1000 per task, and (lost, gained, compared)."""
    flips = flips or {}
    scores = tuple(
        score(
            "c0", task, j, correct, 1000,
            **dict(zip(FLIPS, flips.get(j, (0, 0, 0)), strict=True)),
        )
        for j, correct in enumerate(row)
    )  # fmt: skip
    return a_round(
        "run", 3 * task + 3, kind="evaluate", task_index=task, scores=scores, replies=(), events=()
    )


ROUNDS = [
    stage(-1, [100, 100, 100]),
    stage(0, [943, 0, 0]),
    stage(1, [870, 900, 0], {0: (80, 7, 1000), 1: (0, 900, 1000)}),
    stage(2, [930, 860, 880], {0: (20, 7, 1000), 1: (0, 860, 1000)}),
]


def before(verdict):
    """The task of the state it was compared with."""
    return verdict.compared_with.task_index if verdict.compared_with else None


def judged(rounds=ROUNDS, **require):
    return verdicts(rounds, Requirements(**require), NAMES)


def test_without_requirements_everything_is_published():
    assert [(v.task_index, v.step_index, before(v), v.reasons) for v in judged()] == [
        (0, 3, None, ()), (1, 6, 0, ()), (2, 9, 1, ()),
    ]  # fmt: skip


def test_a_drop_is_withheld_in_words_and_numbers():
    _, second, third = judged(max_drop=0.05)
    assert second.reasons == (
        "task 0 'banking' lost 7.3 points against its best of 0.943; publish.require.max_drop is "
        "0.05",
    )
    assert third.published
    assert before(third) == 0  # the state that was withheld is not what is compared with


def test_the_best_is_that_of_a_published_state():
    """Task 1 lost 4 points against a state nobody was given: that is no drop."""
    withheld = judged(max_drop=0.03)
    assert [v.published for v in withheld] == [True, False, True]
    published = judged([ROUNDS[0], ROUNDS[1], stage(1, [943, 900, 0]), ROUNDS[3]], max_drop=0.03)
    assert published[2].reasons == (
        "task 1 'travel' lost 4.0 points against its best of 0.900; publish.require.max_drop is "
        "0.03",
    )


def test_a_limit_that_is_just_met_is_met():
    rounds = [ROUNDS[0], stage(0, [800, 0, 0]), stage(1, [750, 500, 0])]  # 0.8 − 0.75 > 0.05
    assert judged(rounds, max_drop=0.05)[1].published
    assert not judged(rounds, max_drop=0.0499)[1].published


def test_negative_flips_count_on_what_the_release_had_learnt():
    _, second, third = judged(max_negative_flips=0.05)
    assert second.reasons == (
        "of 1000 held-out examples that the release after task 0 'banking' had learnt, 80 (8.0%) "
        "were right then and are wrong now; publish.require.max_negative_flips is 0.05",
    )
    assert third.published  # 20 of the 1000 of task 0; task 1 was not in the release


def test_flips_that_nobody_could_count_do_not_pass():
    (_, second) = judged([ROUNDS[1], stage(1, [870, 900, 0])], max_negative_flips=0.05)
    assert second.reasons == (
        "no client has its answers to the release after task 0 'banking'; "
        "publish.require.max_negative_flips is 0.05",
    )


def test_accuracy_and_forgetting_have_their_limits():
    first, second, third = judged(min_accuracy=0.9, max_forgetting=0.03)
    assert first.published
    assert second.reasons == (
        "accuracy over the 2 tasks learnt is 0.885; publish.require.min_accuracy is 0.9",
        "forgetting is 0.073; publish.require.max_forgetting is 0.03",
    )
    assert third.reasons == (
        "accuracy over the 3 tasks learnt is 0.890; publish.require.min_accuracy is 0.9",
    )


def test_what_cannot_be_measured_does_not_pass():
    blind = [stage(0, [943]), stage(1, [])]
    (_, second) = judged([*blind], max_drop=0.5, min_accuracy=0.1, max_forgetting=0.5)
    assert "task 0 'banking' could not be scored" in second.reasons[0]


def test_a_run_in_which_nothing_passes_has_no_release():
    found = judged(min_accuracy=0.99)
    assert last_release(found) is None
    assert {v.compared_with for v in found} == {None}


def test_verdicts_do_not_depend_on_what_comes_later():
    whole = judged(max_drop=0.05, max_negative_flips=0.05)
    for count in range(len(ROUNDS) + 1):
        part = judged(ROUNDS[:count], max_drop=0.05, max_negative_flips=0.05)
        assert part == whole[: len(part)]


def test_releases_are_described_with_their_flips():
    (first, second, third) = described(ROUNDS, judged(max_drop=0.05), [], 3)
    assert first["num_compared"] == 0
    assert (second["num_lost"], second["num_gained"], second["num_compared"]) == (80, 7, 1000)
    assert second["negative_flip_rate"] == 0.08
    assert third["compared_with"] == 0
    assert third["num_compared"] == 1000
    assert [each["num_gained"] for each in third["flips"]] == [7, 860, 0]


def test_limits_are_fractions():
    with pytest.raises(ConfigError, match=r"publish.require.max_drop.*5.*less than or equal to 1"):
        a_config(publish__require={"max_drop": 5})
    with pytest.raises(ConfigError, match="did you mean 'max_drop'"):
        a_config(publish__require={"max_drops": 0.5})
