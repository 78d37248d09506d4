"""A simulation on a Ray of its own, or on the cluster that ``RAY_ADDRESS`` names."""

from __future__ import annotations

from orchestrator.ray_start import _ray_arguments


def test_the_size_of_a_cluster_is_its_own(monkeypatch):
    monkeypatch.setattr("orchestrator.ray_start.usable_cores", lambda: 3)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert _ray_arguments()["num_cpus"] == 3
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    assert "num_cpus" not in _ray_arguments()
