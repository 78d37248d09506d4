"""A SuperNode whose ClientApp died in a moment that Flower does not notice."""

from __future__ import annotations

import pytest

from orchestrator.deployment.client import CLIENT_APP, Client
from orchestrator.deployment.supervisor import Supervised
from tests.orchestrator.deployment.actors import Actor
from tests.orchestrator.deployment.test_reading import ROUND, options


def supervised(name):
    return Supervised(name=name, start=Actor, is_ready=lambda: True, verdict=lambda *_: None)


@pytest.fixture
def client(tmp_path):
    made = Client.prepare(options(tmp_path))
    made.trainer, made.supernode = supervised("the trainer"), supervised("the SuperNode")
    made.signs.trainer_listens = True
    made.tick(1000.0)
    return made


def heard(client, *lines):
    for line in lines:
        client.signs.read_supernode(line)


def ticks(client, first, last):
    """Every second; whether its SuperNode is still the one it was."""
    node = client.supernode.process
    for now in range(first, last + 1):
        client.tick(float(now))
    return client.supernode.process is node


def test_an_order_without_a_client_app_restarts_the_supernode(client):
    heard(client, *ROUND[:3])
    node = client.supernode.process
    assert ticks(client, 1001, 1089)
    assert not ticks(client, 1090, 1092)
    assert node.ended
    assert "waited for a ClientApp that had died" in client.status(1092.0)
    assert client.supernode.restart_at > 1090


def test_a_client_app_at_work_is_left_in_peace_however_long_and_missed_when_it_dies(client):
    heard(client, *ROUND[:3])
    client.supernode.process.descendants = (CLIENT_APP,)
    assert ticks(client, 1001, 5000)
    client.supernode.process.descendants = ()
    assert ticks(client, 5001, 5075)
    assert not ticks(client, 5076, 5101)


@pytest.mark.parametrize("heard_of", [0, 2, 4, 5])
def test_a_message_on_its_way_in_or_out_may_take_its_time(client, heard_of):
    """Over a slow line; the ClientApp is not there yet, or done."""
    heard(client, *ROUND[:heard_of])
    assert ticks(client, 1001, 9000)
