"""Scoring a state whose encoder nobody has touched: nothing is encoded twice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clients.evaluation import evaluate
from clients.workshop import shard_of
from strategies.types import HEAD, Evaluation, ParamKey
from tests.clients.test_trainer import IDS, lab

__all__ = ["lab"]  # a fixture
CLIENT = IDS[2]


def shop_of(bench):
    return bench.trainer._workshop(bench.plan(1).orders[0].assignment.recipe)


def head(seed):
    weight = np.random.default_rng(seed).standard_normal((10, 16)).astype(np.float32)
    return {ParamKey(HEAD, "weight"): weight}


def scores(shop, seen=(0, 1), **changes):
    plan = Evaluation(tasks=(0, 1), seen_tasks=seen, **changes)
    return evaluate(shop.model, shop.dataset, shard_of(shop, CLIENT), plan, shop.recipe).scores


@pytest.fixture
def encoded(monkeypatch):
    """Counts the examples that go through the encoder."""
    from clients.model import AdaptedModel

    counts = []
    plain, features = AdaptedModel.logits, AdaptedModel.features

    def count(method):
        def counting(self, inputs):
            counts.append(len(inputs["labels"]))
            return method(self, inputs)

        return counting

    monkeypatch.setattr(AdaptedModel, "logits", count(plain))
    monkeypatch.setattr(AdaptedModel, "features", count(features))
    return counts


def test_an_untouched_encoder_sees_each_example_once(lab, encoded):
    shop = shop_of(lab())
    shop.model.apply(head(0), 1.0)
    first = scores(shop, seen=(0,))
    assert sum(encoded) == first[0].num_examples  # the second task is hopeless
    again = scores(shop)
    everything = sum(score.num_examples for score in again)
    assert sum(encoded) == everything
    shop.model.apply(head(1), 1.0)
    assert scores(shop) != again
    assert sum(encoded) == everything


def test_kept_features_give_the_scores_of_the_whole_model(lab):
    shop = shop_of(lab())
    shop.model.apply(head(0), 1.0)
    kept = scores(shop)
    shop.model.untouched = False
    for one, other in zip(kept, scores(shop), strict=True):
        assert dataclasses.replace(one, loss_sum=0.0) == dataclasses.replace(other, loss_sum=0.0)
        assert one.loss_sum == pytest.approx(other.loss_sum, rel=1e-5)


def test_more_examples_than_can_be_kept_are_encoded_anew(lab, encoded, monkeypatch):
    monkeypatch.setattr("clients.evaluation.MOST_KEPT", 5)
    shop = shop_of(lab())
    shop.model.apply(head(0), 1.0)
    count = sum(score.num_examples for score in scores(shop))
    scores(shop)
    assert sum(encoded) == 2 * count
    assert not shop.model.kept_features


def test_what_was_scored_before_does_not_change_a_bit(lab, tmp_path):
    early, late = shop_of(lab()), shop_of(lab())
    early.model.apply(head(0), 1.0)
    scores(early, seen=(0,))
    late.model.apply(head(0), 1.0)
    assert scores(early) == scores(late)


def test_an_encoder_that_moved_is_asked_again(lab, encoded):
    bench = lab()
    order = next(o for o in bench.plan(1).orders)
    shop = shop_of(bench)
    shop.model.apply(head(0), 1.0)
    scores(shop)
    before = sum(encoded)
    shop.model.apply(
        bench.trainer._assemble(shop, order.assignment, order.tensors), order.assignment.scale
    )
    scores(shop)
    assert sum(encoded) == 2 * before
