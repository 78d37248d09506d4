"""AirLLM's parts against hand-worked values, and what the whole learns on the simulated channel."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from strategies.rank.airllm.controller import advantages, clipped_objective
from strategies.rank.airllm.decision import decoded, encoded, ranks_of, share_of_deadline
from strategies.rank.airllm.networks import (
    CODE,
    Diffusion,
    Sizes,
    initial_parameters,
    log_probability,
)
from strategies.rank.airllm.policy import AirLLM
from strategies.rank.limits import plans_of, uniform
from strategies.rng import rng_for
from strategies.types import HEAD, Observation, RoundBudget
from tests.strategies.model_of_blocks import a_profile, a_view, everything

torch = pytest.importorskip("torch")

BUDGET = RoundBudget(deadline_seconds=12.0, steps=2, batch_size=4)
QUICK = AirLLM(rank=8, pretrain_episodes=3)


def on_lines(rates, **changes):
    clients = tuple(
        a_profile(
            i, flops_per_second=1e9, uplink_bytes_per_second=r, downlink_bytes_per_second=4 * r
        )
        for i, r in enumerate(rates)
    )
    return a_view(clients=clients, budget=BUDGET, **changes)


def allocate(policy, view):
    return policy.allocate(view, everything(view), rng_for(0))


def played(view, ranks, loss: float | None = 1.0) -> list[Observation]:
    return [
        Observation(
            client_id=client.client_id,
            groups=plans_of((*ranks[client.client_id], HEAD), ranks[client.client_id]),
            answered=loss is not None, loss=loss, bytes_down=10, bytes_up=10, seconds=3.0,
            evidence={},
        )
        for client in view.clients
    ]  # fmt: skip


def test_importing_it_loads_no_torch():
    code = "import strategies.catalog, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("max_rank", [1, 2, 8, 64])
def test_ranks_survive_their_code(max_rank):
    ranks = list(range(1, max_rank + 1))
    assert decoded(encoded(ranks, max_rank), max_rank) == ranks
    assert decoded(np.array([-1.0, 1.0]), max_rank) == [1, max_rank]


def test_kappa_rises_with_rank_and_falls_with_the_rate():
    rates = [1e3, 1e4, 1e5]
    view, names = on_lines(rates), everything(on_lines([1e3]))["client-0"]
    table = np.array(
        [
            [
                share_of_deadline(view, client, plans_of(names, uniform(view, names, rank)))
                for rank in (1, 2, 4, 8)
            ]
            for client in view.clients
        ]
    )
    assert (np.diff(table, axis=1) > 0).all()
    assert (np.diff(table, axis=0) < 0).all()


def test_advantages_by_hand():
    found, returns = advantages(np.array([1.0, 0.0, 2.0]), np.array([0.5, 1.0, 0.0]), 0.9, 0.5)
    last = 2.0 - 0.0
    middle = (0.0 + 0.9 * 0.0 - 1.0) + 0.45 * last
    first = (1.0 + 0.9 * 1.0 - 0.5) + 0.45 * middle
    np.testing.assert_allclose(found, [first, middle, last])
    np.testing.assert_allclose(returns, [found[0] + 0.5, found[1] + 1.0, found[2]])


def test_the_clipped_objective_by_hand():
    ratio, gain = torch.tensor([1.5, 0.5, 1.5, 0.5]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    expected = np.mean([1.2, 0.5, -1.5, -0.8])
    assert float(clipped_objective(ratio, gain, 0.2)) == pytest.approx(expected)


def test_log_probability_is_a_gaussians():
    parameters = {
        n: torch.from_numpy(v)
        for n, v in initial_parameters(Sizes(state=3, action=2), rng_for(0)).items()
    }
    z, states = torch.randn(5, CODE), torch.zeros(5, 3)
    normal = torch.distributions.Normal(torch.zeros(CODE), parameters["actor/log_std"].exp())
    torch.testing.assert_close(
        log_probability(parameters, states, z), normal.log_prob(z).sum(dim=1)
    )


def test_the_noise_schedule_is_the_papers():
    kept = Diffusion(steps=1000, sampled=50).kept()
    betas = 1 - kept / np.concatenate([[1.0], kept[:-1]])
    assert betas[0] == pytest.approx(1e-4)
    assert betas[-1] == pytest.approx(0.02)
    np.testing.assert_allclose(np.diff(np.sqrt(betas)), np.diff(np.sqrt(betas))[0], rtol=1e-6)


def test_a_denoiser_that_knows_the_answer_recovers_it(monkeypatch):
    target = torch.tensor([[0.3, -0.7, 0.9]])
    monkeypatch.setattr(Diffusion, "clean", lambda self, p, x, code, times: target.expand_as(x))
    found = Diffusion(steps=100, sampled=10).sample({}, torch.zeros(4, CODE), torch.randn(4, 3))
    torch.testing.assert_close(found, target.expand(4, 3), atol=1e-5, rtol=0)


def test_same_seed_same_ranks_and_same_memory():
    view = on_lines([3e3, 1e5, 1e6])
    first, again = allocate(QUICK, view), allocate(replace(QUICK), view)
    assert first == again
    states = [QUICK.observe(view, played(view, first), rng_for(i)) for i in range(2)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        np.testing.assert_array_equal(states[1][name], value)
    assert allocate(QUICK, replace(view, seed=1)) != first


def test_it_goes_on_from_its_arrays_to_the_same_bits():
    def play(view, rounds):
        for index in range(rounds):
            view = replace(view, round_index=index)
            view = replace(
                view, state=QUICK.observe(view, played(view, allocate(QUICK, view)), rng_for(0))
            )
        return view

    whole = play(on_lines(np.geomspace(3e3, 1e6, 8)), 4)
    half = play(on_lines(np.geomspace(3e3, 1e6, 8)), 2)
    state = {name: np.array(value) for name, value in half.state.items()}
    assert all(value.dtype != object for value in state.values())
    for index in (2, 3):
        view = replace(half, round_index=index, state=state)
        state = dict(QUICK.observe(view, played(view, allocate(QUICK, view)), rng_for(0)))
    assert int(state["updates"]) > 3  # learnt on the way, beyond the simulated episodes
    for name, value in whole.state.items():
        np.testing.assert_array_equal(state[name], value)


def test_torchs_own_stream_and_threads_are_left_alone():
    view = on_lines([1e5])
    torch.manual_seed(3)
    expected, threads = torch.rand(2), torch.get_num_threads()
    torch.manual_seed(3)
    QUICK.observe(view, played(view, allocate(QUICK, view)), rng_for(0))
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("rate", [1e2, 1.2e3, 2e3, 5e3, 1e6])
def test_no_round_is_wasted_that_could_be_used(rate):
    view = on_lines([rate])
    client, names = view.clients[0], everything(view)["client-0"]
    ranks = allocate(QUICK, view)["client-0"]
    assert all(0 <= rank <= 8 for rank in ranks.values())
    kappa = share_of_deadline(view, client, plans_of(names, ranks))
    assert kappa <= 1 or not any(ranks.values())
    if share_of_deadline(view, client, plans_of(names, uniform(view, names, 1))) <= 1:
        assert all(ranks.values())


def test_an_answer_that_never_came_is_the_worst_of_rewards():
    view = on_lines([1e6])
    ranks = allocate(QUICK, view)
    good = QUICK.observe(view, played(view, ranks, 0.5), rng_for(0))["pending/reward"]
    lost = QUICK.observe(view, played(view, ranks, None), rng_for(0))["pending/reward"]
    assert -1 < good[0] < 0
    assert lost[0] == -10


def test_on_the_simulated_channel_it_learns_to_give_a_fast_line_more():
    """More rank where it is free, less where it cannot be sent in time."""
    hasty = replace(BUDGET, deadline_seconds=1.5)
    view = replace(on_lines([8e3] * 8 + [1e6] * 8), budget=hasty)

    def mean_ranks(policy):
        choices = policy._choices(view, policy._started(view), view.clients)
        means = [np.mean(list(ranks_of(view, x, 8).values())) for x in choices.x]
        return np.mean(means[:8]), np.mean(means[8:])

    slow, fast = mean_ranks(AirLLM(rank=8, pretrain_episodes=150))
    before = mean_ranks(AirLLM(rank=8, pretrain_episodes=1))
    assert before[1] - before[0] < 3 < fast - slow
