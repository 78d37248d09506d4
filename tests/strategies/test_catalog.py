"""The catalog: what a run file may name, and what it is told when it cannot be."""

from __future__ import annotations

import pytest

from strategies.catalog import RANK_ALLOCATORS, build, nearest
from strategies.errors import ConfigError
from strategies.rank.fixed import Fixed
from strategies.types import StrategyChoice


def test_build_gives_the_class_with_its_parameters():
    choice = StrategyChoice(name="fixed", params={"rank": 3})
    assert build(RANK_ALLOCATORS, choice, key="strategy.rank") == Fixed(rank=3)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (
            StrategyChoice(name="fixd"),
            ["strategy.rank.name", "'fixd'", "dense, eva, fixed", "'fixed'?"],
        ),
        (StrategyChoice(name="fixed", params={"rnak": 3}), ["strategy.rank.rnak", "'rank'?"]),
        (
            StrategyChoice(name="fixed", params={"rank": 0}),
            ["strategy.rank.rank", "0", "equal to 1"],
        ),
        (StrategyChoice(name="fixed", params={"rank": "x"}), ["strategy.rank.rank", "'x'"]),
    ],
)
def test_a_choice_that_cannot_be_built_says_why(choice, words):
    with pytest.raises(ConfigError) as caught:
        build(RANK_ALLOCATORS, choice, key="strategy.rank")
    for word in words:
        assert word in str(caught.value)


def test_all_faults_of_a_choice_are_reported_together():
    choice = StrategyChoice(name="fixed", params={"rank": 0, "rnak": 1})
    with pytest.raises(ConfigError) as caught:
        build(RANK_ALLOCATORS, choice, key="strategy.rank")
    assert len(caught.value.faults) == 2


def test_nearest_is_silent_when_nothing_is_near():
    assert nearest("zzz", ["fixed"]) == ""
