"""How the benchmark of bytes counts, without training anything."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from benchmarks.bytes_to_target import pooled, summary, with_ratios
from benchmarks.stock_rounds import identify, weight


def a_message(**arrays):
    identify()
    record = ArrayRecord({name: Array(value) for name, value in arrays.items()})
    return Message(RecordDict({"arrays": record}), 1, "train")


def test_a_message_weighs_its_tensors_and_little_else():
    tensors = {f"t{i}": np.full((300, 100), i, np.float32) for i in range(5)}
    payload = sum(value.nbytes for value in tensors.values())
    assert payload < weight(a_message(**tensors)) < 1.02 * payload


def test_flower_sends_equal_tensors_of_a_message_once():
    zeros = np.zeros((300, 100), np.float32)
    assert weight(a_message(a=zeros, b=zeros)) < 1.1 * weight(a_message(a=zeros))


def test_pooled_clients_keep_what_is_theirs():
    deal = [[[{"text": "a"}], []], [[{"text": "b"}], [{"text": "c"}]]]
    assert pooled(deal) == [[[{"text": "a"}, {"text": "b"}], [{"text": "c"}]]]


def a_row(num_bytes, *, reached=True):
    return {
        "acc": 0.9, "bytes": num_bytes, "bytes_with_scoring": 2 * num_bytes, "reached": reached,
        "first_round_bytes": 50,
    }  # fmt: skip


def test_ours_is_compared_with_the_cheapest_peer_that_got_there():
    stock = summary({"a": [a_row(10, reached=False)], "b": [a_row(100)], "c": [a_row(400)]})
    (row,) = with_ratios(summary({"x": [a_row(4), a_row(6), a_row(5)]}), stock).values()
    assert (row["ratio"], row["ratio_with_scoring"]) == (0.05, 0.1)


def test_a_peer_that_one_seed_kept_away_did_not_get_there():
    stock = summary({"a": [a_row(10), a_row(10, reached=False)]})
    assert not stock["a"]["reached"]
    row = with_ratios(summary({"x": [a_row(5)]}), stock)["x"]
    assert "ratio" not in row
    assert (row["ratio_to_one_round"], row["ratio_to_one_round_with_scoring"]) == (0.1, 0.2)


def test_without_a_peer_nothing_is_compared():
    assert not any("ratio" in key for key in with_ratios(summary({"x": [a_row(5)]}), {})["x"])
