"""A simulation on a Ray of its own, or on the cluster that the run file names."""

from __future__ import annotations

import pytest

from orchestrator.ray_start import _ray_arguments
from strategies.errors import ConfigError
from tests.conftest import tiny_config


def test_a_ray_of_its_own_whatever_else_is_running(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "somebody-elses:6379")
    found = _ray_arguments(None, 3)
    assert (found["address"], found["num_cpus"]) == ("local", 3)


def test_the_size_of_a_cluster_is_its_own():
    found = _ray_arguments("ray-head:6379", 3)
    assert found["address"] == "ray-head:6379"
    assert "num_cpus" not in found


@pytest.mark.parametrize("address", ["", "ray-head", "ray-head:", "ray://ray-head:10001", "local"])
def test_what_is_no_address_of_a_cluster_is_a_fault(address):
    with pytest.raises(ConfigError, match=r"federation\.ray_address"):
        tiny_config(federation__transport="ray", federation__ray_address=address)


def test_an_address_without_ray_is_a_fault():
    with pytest.raises(ConfigError, match=r"federation\.transport = \"ray\""):
        tiny_config(federation__ray_address="auto")
