"""Screening: distances as if ΔW were formed, and no client that counts for more than its part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.catalog import SCREENERS
from strategies.lora import keys_of
from strategies.protocols import Contribution, Outvoting, Screener
from strategies.screening.central import scores_of
from strategies.screening.changes import Distances, changes_of
from strategies.screening.krum import Krum
from strategies.screening.multi_krum import MultiKrum
from strategies.screening.norm_clipping import NormClipping
from strategies.screening.weights import capped
from strategies.types import HEAD, LORA_B, ParamKey
from tests.strategies.aggregation_rounds import (
    GROUP,
    OTHER,
    RANK,
    client,
    held,
    local_product,
    sent_to,
    server,
)

SCALE = 2.0
WEIGHT = ParamKey(HEAD, "weight")
KINDS = {name: kind for name, kind in SCREENERS.items() if isinstance(kind(), Screener)}
every = pytest.mark.parametrize("name", KINDS)
any_ranks = st.lists(st.integers(1, RANK), min_size=1, max_size=7)
any_seed = st.integers(0, 1000)


def screen(screener, state, clients, memory=None):
    return screener.screen(memory or {}, state, clients, SCALE)


def change(state, contribution):
    """The change of the model of one low-rank group, formed in full."""
    a, b = sent_to(state, contribution)
    return SCALE * (local_product(state, contribution) - b @ a)


def times(factor, contribution):
    delta = {key: (factor * value).astype("f4") for key, value in contribution.delta.items()}
    return replace(contribution, delta=delta)


def headed(contribution, values, weight):
    """With moves of a head of three classes; a weight per row."""
    return replace(
        contribution,
        delta={**contribution.delta, WEIGHT: np.asarray(values, np.float32)},
        weight={**contribution.weight, HEAD: np.asarray(weight, np.float64)},
    )


@given(
    ranks=st.tuples(st.integers(1, RANK), st.integers(1, RANK)),
    seed=any_seed,
    size=st.sampled_from([1e-4, 0.1, 100.0]),
    near=st.sampled_from([1.0, 1e-3, 1e-5]),
)
def test_norms_and_distances_are_those_of_the_products(ranks, seed, size, near):
    state = server(seed)
    one, other = (client(i, rank, seed=seed, size=size) for i, rank in enumerate(ranks))
    if ranks[0] == ranks[1]:  # clients that nearly agree: what is between them is small
        other = replace(other, delta={
            key: (one.delta[key] + near * value).astype("f4") for key, value in other.delta.items()
        })  # fmt: skip
    first, second = (changes_of(c, state, SCALE)[GROUP] for c in (one, other))
    dense = [change(state, c) for c in (one, other)]
    assert np.sqrt(first.squared()) == pytest.approx(np.linalg.norm(dense[0]), rel=1e-5)
    apart = np.linalg.norm(_exactly_apart(state, one, other))
    assert np.sqrt(first.squared_distance(second)) == pytest.approx(apart, rel=1e-5)
    assert np.sqrt(second.squared_distance(first)) == pytest.approx(apart, rel=1e-5)


def _exactly_apart(state, one, other):
    """D − D' in long doubles, for the plain difference of products loses digits."""
    key_a, key_b = keys_of(GROUP)
    products = []
    for c in (one, other):
        a, b = (part.astype(np.longdouble) for part in sent_to(state, c))
        da, db = (c.delta[key].astype(np.longdouble) for key in (key_a, key_b))
        products.append(SCALE * ((b + db) @ da + db @ a))
    return (products[0] - products[1]).astype(float)


def test_a_factor_that_was_not_trained_stays_as_it_was_sent():
    state, one = server(1), client(0, 3, parts=(LORA_B,))
    norm = np.sqrt(changes_of(one, state, SCALE)[GROUP].squared())
    assert norm == pytest.approx(np.linalg.norm(change(state, one)), rel=1e-6)


def test_groups_count_relative_to_their_median_size_and_only_where_both_trained_them():
    state = server(2, GROUP, OTHER)
    both = [client(i, groups=(GROUP, OTHER)) for i in range(2)]
    small = client(2)  # trained one group only
    found = Distances.between([changes_of(c, state, SCALE) for c in (*both, small)]).squared
    products = {
        g: [changes_of(c, state, SCALE).get(g) for c in (*both, small)] for g in (GROUP, OTHER)
    }
    size = {
        g: np.median([p.squared() for p in found if p is not None]) for g, found in products.items()
    }
    terms = {g: products[g][0].squared_distance(products[g][1]) / size[g] for g in (GROUP, OTHER)}
    assert found[0, 1] == pytest.approx(np.mean(list(terms.values())), rel=1e-9)
    expected = products[GROUP][0].squared_distance(products[GROUP][2]) / size[GROUP]
    assert found[0, 2] == pytest.approx(expected, rel=1e-9)
    np.testing.assert_array_equal(found, found.T)


def test_clients_that_share_no_group_are_as_far_apart_as_the_median_of_those_that_do():
    state = server(2, GROUP, OTHER)
    clients = [client(0), client(1), client(2, groups=(OTHER,)), client(3, groups=(OTHER,))]
    found = Distances.between([changes_of(c, state, SCALE) for c in clients]).squared
    expected = (found[0, 1] + found[2, 3]) / 2
    assert found[0, 2] == found[1, 3] == pytest.approx(expected)
    assert expected > 0


def test_a_row_without_examples_did_not_move_whatever_was_sent():
    values = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    one = Contribution(client_id="0", delta={}, weight={})
    moved = changes_of(headed(one, values, [1.0, 0.0, 2.0]), {}, SCALE)[HEAD]
    assert moved.squared() == pytest.approx(1 + 4 + 25 + 36)
    assert HEAD not in changes_of(headed(one, values, [0.0, 0.0, 0.0]), {}, SCALE)


def test_heads_compare_over_the_rows_both_hold_and_count_as_much_as_all_adapters_together():
    """Rows (1, 0), (3, 0) and (2, 0) of class 0, held by all; class 1 by the first two alone."""
    state, low = server(2, GROUP, OTHER), [client(i, groups=(GROUP, OTHER)) for i in range(3)]
    rows = [[(1, 0), (0, 2)], [(3, 0), (0, 4)], [(2, 0), (9, 9)]]
    weights = [(1, 1), (2, 5), (1, 0)]
    clients = [headed(c, r, w) for c, r, w in zip(low, rows, weights, strict=True)]
    plain, found = (
        Distances.between([changes_of(c, state, SCALE) for c in some]).squared
        for some in (low, clients)
    )
    # The median ‖row‖² is 4 of class 0 (1, 9, 4) and 10 of class 1 (4, 16).
    assert found[0, 1] == pytest.approx((plain[0, 1] + (4 / 4 + 4 / 10) / 2) / 2)
    assert found[0, 2] == pytest.approx((plain[0, 2] + 1 / 4) / 2)


def test_an_update_turned_round_is_told_by_the_rows_of_shared_classes():
    """Adapters as good as orthogonal; rows that agree on what a class looks like."""
    state = server(4)
    looks = np.random.default_rng(0).normal(size=(6, 8))
    clients = []
    for index in range(10):
        noise = np.random.default_rng(index + 1).normal(size=looks.shape)
        held = np.random.default_rng(50 + index).permutation(6) < 4
        one = headed(client(index), looks + 0.5 * noise, held)
        clients.append(times(-1, one) if index in (2, 5, 8) else one)
    found = screen(MultiKrum(), state, clients)
    assert [f.client_id for f in found.findings if f.action != "kept"] == ["2", "5", "8"]


def test_who_stood_out_before_is_kept_out_while_it_hides():
    """Client 2 lies far off in the first round alone; by hand 0.8 of that is remembered."""
    state = server(4)
    clients = [client(i, seed=9) for i in range(7)]
    first = [times(2.0, c) if c.client_id == "2" else c for c in clients]
    screener = MultiKrum(hostile=0.1)
    one = screen(screener, state, first)
    two = screen(screener, state, clients, one.state)
    assert [f.client_id for f in two.findings if f.action != "kept"] == ["2"]
    scores = [[f.numbers["screening_score"] for f in r.findings] for r in (one, two)]
    relative = [np.array(s) / np.median(s) for s in scores]
    expected = 0.8 * relative[0][2] + 0.2 * relative[1][2]
    assert float(two.state["2"]) == pytest.approx(expected)
    alone = screen(MultiKrum(hostile=0.1, memory=0.0), state, clients, one.state)
    worst = str(int(np.argmax(scores[1])))
    assert [f.client_id for f in alone.findings if f.action != "kept"] == [worst]
    assert worst != "2"


# Krum


def slow_krum(products, hostile):
    """Blanchard et al. 2017, §4, word by word, on products formed in full."""
    count, scores = len(products), []
    for i in range(count):
        apart = sorted(
            np.linalg.norm(products[i] - products[j]) ** 2 for j in range(count) if j != i
        )
        scores.append(sum(apart[: count - hostile - 2]))
    return scores


@given(ranks=st.lists(st.integers(1, RANK), min_size=5, max_size=9), seed=any_seed,
       hostile=st.sampled_from([0.0, 0.1, 0.2]))  # fmt: skip
def test_krum_is_the_slow_dense_reference(ranks, seed, hostile):
    state = server(seed)
    clients = [client(i, rank, seed=seed) for i, rank in enumerate(ranks)]
    f = min(int(np.ceil(hostile * len(ranks) - 1e-9)), (len(ranks) - 3) // 2)
    expected = np.array(slow_krum([change(state, c) for c in clients], f))
    one = screen(Krum(hostile=hostile), state, clients)
    found = np.array([finding.numbers["screening_score"] for finding in one.findings])
    np.testing.assert_allclose(found / found.max(), expected / expected.max(), rtol=1e-6)
    assert [c.client_id for c in one.contributions] == [str(int(np.argmin(expected)))]
    several = screen(MultiKrum(hostile=hostile), state, clients)
    best = sorted(np.argsort(expected)[: len(ranks) - f].tolist())
    assert [c.client_id for c in several.contributions] == [str(i) for i in best]


def test_krum_by_hand():
    """Points 0, 1, 2, 3, 40 on a line, f = 1: two nearest of each."""
    points = np.array([0.0, 1.0, 2.0, 3.0, 40.0])
    squared = (points[:, None] - points[None]) ** 2
    np.testing.assert_array_equal(
        scores_of(squared, 1), [1 + 4, 1 + 1, 1 + 1, 1 + 4, 37**2 + 38**2]
    )
    state = {WEIGHT: np.zeros((1, 2), "f4")}
    clients = [
        Contribution(client_id=str(i), delta={WEIGHT: np.array([[p, 0]], "f4")},
                     weight={HEAD: np.array(1.0)})
        for i, p in enumerate(points)
    ]  # fmt: skip
    found = screen(Krum(hostile=0.2), state, clients)
    assert [c.client_id for c in found.contributions] == ["1"]  # of 1 and 2 the smaller id
    assert [f.action for f in found.findings] == [
        "left-out", "kept", "left-out", "left-out", "refused"
    ]  # fmt: skip
    # Distances are relative to the median ‖D‖² = 4; those of the four best are 2, 2, 5, 5.
    assert found.findings[4].numbers["screening_limit"] == pytest.approx(9 * 3.5 / 4)
    assert found.findings[4].numbers["screening_score"] == pytest.approx((37**2 + 38**2) / 4)
    several = screen(MultiKrum(hostile=0.2), state, clients)
    assert [c.client_id for c in several.contributions] == ["0", "1", "2", "3"]
    assert "score 703 above 7.88" in several.findings[4].why


@pytest.mark.parametrize("attack", [1000.0, -5.0, "random"])
def test_multi_krum_names_hostile_clients_among_clients_that_agree_on_something(attack):
    state, agreed = server(3), client(99, size=0.1)
    clients = []
    for index in range(10):
        own = client(index, size=0.05)
        one = replace(own, delta={k: v + agreed.delta[k] for k, v in own.delta.items()})
        if index < 3:
            one = times(attack, one) if attack != "random" else client(index, size=1.0)
        clients.append(one)
    found = screen(MultiKrum(), state, clients)
    assert [c.client_id for c in found.contributions] == [str(i) for i in range(3, 10)]
    assert [f.action for f in found.findings] == ["refused"] * 3 + ["kept"] * 7


@pytest.mark.parametrize("kind", [Krum, MultiKrum])
def test_too_few_clients_lower_f_and_it_is_noted(kind):
    state, clients = server(1), [client(i) for i in range(6)]
    (note,) = screen(kind(hostile=0.3), state, clients).notes
    assert note == "6 updates are fewer than 2f + 3 for f = 2 hostile ones: f = 1 instead"
    two = screen(kind(hostile=0.3), state, clients[:2])
    assert len(two.contributions) == 2
    assert two.notes == ("2 updates are fewer than 2f + 3 for f = 1 hostile ones: all count",)
    assert not screen(kind(hostile=0.1), state, clients).notes


@pytest.mark.parametrize(
    ("hostile", "count", "enough"),
    [(0.3, 10, True), (0.3, 9, True), (0.3, 8, False), (0.3, 20, True), (0.0, 3, True),
     (0.0, 2, False), (0.45, 20, False), (0.45, 31, True)],
)  # fmt: skip
def test_the_condition_of_the_paper(hostile, count, enough):
    screener = MultiKrum(hostile=hostile)
    assert isinstance(screener, Outvoting)
    assert screener.suffices(count) is enough


# norm clipping


@given(ranks=any_ranks, seed=any_seed, size=st.sampled_from([0.01, 0.3, 30.0]),
       bound=st.sampled_from([0.05, 1.0, 20.0]))  # fmt: skip
def test_clipping_meets_the_bound_and_keeps_the_direction(ranks, seed, size, bound):
    state = server(seed)
    clients = [client(i, rank, seed=seed, size=size) for i, rank in enumerate(ranks)]
    found = screen(NormClipping(bound=bound), state, clients)
    for before, after, finding in zip(clients, found.contributions, found.findings, strict=True):
        norm, now = (np.linalg.norm(change(state, c)) for c in (before, after))
        if norm <= bound:
            assert finding.action == "kept"
            assert after.delta is not None
            assert all(np.array_equal(after.delta[k], v) for k, v in before.delta.items())
            continue
        assert finding.action == "scaled"
        assert now == pytest.approx(bound, rel=1e-4)
        share = finding.numbers["screening_share"]
        assert 0 < share < 1
        for key, value in before.delta.items():
            np.testing.assert_allclose(after.delta[key], share * value, rtol=1e-5, atol=1e-9)
        assert finding.numbers["screening_norm"] == pytest.approx(norm, rel=1e-5)


def test_clipping_by_hand():
    """Rows 3 and 4 long: the median of norms 3, 4, 100 is 4, so the last becomes 4 / 100."""
    state = {WEIGHT: np.zeros((1, 2), "f4")}
    clients = [
        Contribution(client_id=str(i), delta={WEIGHT: np.array([[x, y]], "f4")},
                     weight={HEAD: np.array(1.0)})
        for i, (x, y) in enumerate([(3, 0), (0, 4), (60, 80)])
    ]  # fmt: skip
    found = screen(NormClipping(), state, clients)
    np.testing.assert_allclose(found.contributions[2].delta[WEIGHT], [[2.4, 3.2]], rtol=1e-6)
    assert [f.action for f in found.findings] == ["kept", "kept", "scaled"]
    assert found.findings[2].why == (
        "1 groups scaled, most of all head by 0.04: norm 100, at most 4"
    )


def test_groups_are_clipped_one_by_one():
    state = server(1, GROUP)
    honest = [headed(client(i), 50 * np.ones((3, 2)), [1, 1, 1]) for i in range(3)]
    hostile = headed(times(30, client(3)), 50 * np.ones((3, 2)), [1, 1, 1])
    found = screen(NormClipping(), state, [*honest, hostile]).contributions[3]
    np.testing.assert_array_equal(found.delta[WEIGHT], hostile.delta[WEIGHT])
    limit = np.median([np.linalg.norm(change(state, c)) for c in (*honest, hostile)])
    assert np.linalg.norm(change(state, found)) == pytest.approx(limit, rel=1e-4)


def test_the_medians_of_past_rounds_outlast_a_round_with_a_hostile_majority():
    screener, state, memory = NormClipping(past=3), server(1), {}
    honest = [client(i) for i in range(3)]
    median = np.median([np.linalg.norm(change(state, c)) for c in honest])
    for _ in range(5):
        memory = screen(screener, state, honest, memory).state
    np.testing.assert_allclose(memory[GROUP], [median] * 3, rtol=1e-5)
    flood = [times(1000, c) for c in honest]
    found = screen(screener, state, flood, memory)
    for after in found.contributions:
        assert np.linalg.norm(change(state, after)) <= median * (1 + 1e-4)
    assert found.state[GROUP][-1] > 1000 * median  # on the books, and outvoted by the two before
    again = screen(screener, state, flood, found.state)
    assert np.linalg.norm(change(state, again.contributions[0])) <= median * (1 + 1e-4)
    assert not screen(NormClipping(), state, honest).state


# all of them


@every
@given(ranks=any_ranks, seed=any_seed, order=st.randoms())
def test_order_of_clients_does_not_matter(name, ranks, seed, order):
    state = server(seed)
    clients = [client(i, rank, seed=seed) for i, rank in enumerate(ranks)]
    shuffled = list(clients)
    order.shuffle(shuffled)
    one, other = (screen(KINDS[name](), state, some) for some in (clients, shuffled))
    assert [f.client_id for f in other.findings] == [c.client_id for c in shuffled]
    kept = {c.client_id: c for c in other.contributions}
    assert {c.client_id for c in one.contributions} == kept.keys()
    for contribution in one.contributions:
        for key, value in contribution.delta.items():
            np.testing.assert_allclose(kept[contribution.client_id].delta[key], value, rtol=1e-5)


@every
@given(seed=any_seed, count=st.integers(1, 7))
def test_identical_updates_count_as_they_came(name, seed, count):
    state, one = server(seed), client(0, seed=seed)
    clients = [replace(one, client_id=str(i)) for i in range(count)]
    found = screen(KINDS[name](), state, clients)
    assert not any(f.action == "refused" for f in found.findings)
    assert found.contributions
    for contribution in found.contributions:
        for key, value in one.delta.items():
            np.testing.assert_allclose(contribution.delta[key], value, rtol=1e-5)


@every
@given(ranks=any_ranks, seed=any_seed)
def test_inputs_are_not_mutated_and_nobody_is_lost(name, ranks, seed):
    state = server(seed)
    clients = [client(i, rank, 1.0 + i, seed=seed) for i, rank in enumerate(ranks)]
    before = [{key: value.copy() for key, value in c.delta.items()} for c in clients]
    found = screen(KINDS[name](), state, clients)
    for c, delta in zip(clients, before, strict=True):
        assert all(np.array_equal(c.delta[key], value) for key, value in delta.items())
    assert [f.client_id for f in found.findings] == [c.client_id for c in clients]
    kept = {f.client_id for f in found.findings if f.action in ("kept", "scaled")}
    assert [c.client_id for c in found.contributions] == [
        c.client_id for c in clients if c.client_id in kept
    ]
    assert all(v.dtype == np.float32 for c in found.contributions for v in c.delta.values())
    assert all(f.why for f in found.findings if f.action != "kept")


@every
def test_nothing_trained_passes(name):
    state, clients = server(1), [client(i, size=0.0) for i in range(5)]
    found = screen(KINDS[name](), state, clients)
    assert found.contributions
    assert not any(f.action == "refused" for f in found.findings)
    assert not screen(KINDS[name](), state, []).contributions


@every
@given(factor=st.floats(1, 1e12), seed=any_seed)
def test_what_one_client_can_do_is_bounded(name, factor, seed):
    """With seven others, however far it goes, what is left of it stays within their size."""
    state = server(seed)
    honest = [client(i, seed=seed) for i in range(7)]
    sizes = [np.linalg.norm(change(state, c)) for c in honest]
    hostile = times(factor, client(7, seed=seed))
    found = screen(KINDS[name](), state, [*honest, hostile])
    for contribution in found.contributions:
        assert np.linalg.norm(change(state, contribution)) <= max(sizes) * (1 + 1e-4)


# weights


def test_weights_are_capped_by_hand():
    """Weights 2, 4, 10⁶: the median is 4, so the last counts 12; rows by themselves."""
    state = server(1)
    weights = [(2.0, [1, 0, 5]), (4.0, [2, 0, 0]), (1e6, [9, 1e6, 7])]
    clients = [
        headed(client(i, weight=w), np.ones((3, 2)), rows) for i, (w, rows) in enumerate(weights)
    ]
    found = capped(clients, 3.0)
    assert [float(c.weight[GROUP]) for c in found] == [2.0, 4.0, 12.0]
    np.testing.assert_array_equal(
        [c.weight[HEAD] for c in found], [[1, 0, 5], [2, 0, 0], [6, 1e6, 7]]
    )
    assert [float(c.weight[GROUP]) for c in capped(clients[1:], 1.0)] == [4.0, 4.0]
    assert screen(NormClipping(), state, clients).contributions[2].weight[GROUP] == 12.0


def test_held_is_what_the_oracles_rest_on():
    state, one = server(1), client(0, 2)
    a, b = held(state, one)
    np.testing.assert_allclose(b @ a, local_product(state, one))
