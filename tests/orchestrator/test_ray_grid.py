"""How messages are dealt out to hosts, with a Ray that finishes what it is told to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from orchestrator import ray_grid
from orchestrator.flower_post import Waking
from orchestrator.flower_transport import longest_first
from orchestrator.ray_grid import RayGrid


class DeadError(Exception):
    """What Ray raises of a host that died."""


class FakeRay:
    """Futures are the messages' ids; those in ``done`` have an answer."""

    def __init__(self):
        self.done, self.dead, self.waited = set(), set(), []
        self.exceptions = SimpleNamespace(RayError=DeadError)

    def wait(self, futures, timeout=None):
        self.waited.append(timeout)
        ready = [future for future in futures if future in self.done | self.dead][:1]
        return ready, [future for future in futures if future not in ready]

    def get(self, future):
        if future in self.dead:
            raise DeadError("its process is gone")
        return f"answer to {future}"


class Host:
    """Notes what it is given."""

    def __init__(self):
        self.given, self.contexts = [], []
        self.answer = SimpleNamespace(remote=self._take)

    def _take(self, message, context):
        self.given.append(message.metadata.message_id)
        self.contexts.append(context)
        return message.metadata.message_id


@pytest.fixture
def fake_ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setattr(ray_grid, "ray", fake)
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return fake


def pushed(grid, count):
    nodes = [node.node_id for node in grid.get_nodes()]
    messages = [Message(RecordDict(), nodes[i % len(nodes)], "train") for i in range(count)]
    return list(grid.push_messages(messages))


def test_hosts_have_a_message_ahead_but_the_last_go_to_whoever_is_free(fake_ray):
    grid = RayGrid(Host, 2, 8)
    names = pushed(grid, 7)
    one, other = (host.given for host in grid._hosts)
    assert (one, other) == (names[0:3:2], names[1:4:2])
    fake_ray.done.add(names[0])
    assert grid.pull_messages(names) == [f"answer to {names[0]}"]
    assert one[2:] == names[4:5]
    fake_ray.done.add(names[2])
    grid.pull_messages(names)
    assert one[3:] == []  # it is at work, and two are left for two hosts
    fake_ray.done |= {names[1], names[3]}
    grid.pull_messages(names)
    assert other[2:] == names[5:6]
    fake_ray.done.add(names[4])
    grid.pull_messages(names)
    assert one[3:] == names[6:7]


def test_an_answer_is_handed_on_once_and_only_to_who_asks_for_it(fake_ray):
    grid = RayGrid(Host, 1, 2)
    first, second = pushed(grid, 2)
    fake_ray.done |= {first, second}
    assert grid.pull_messages([second]) == [f"answer to {second}"]
    assert grid.pull_messages([first, second]) == [f"answer to {first}"]
    assert grid.pull_messages([first, second]) == []


def test_a_host_that_dies_is_that_clients_failure(fake_ray):
    grid = RayGrid(Host, 1, 1)
    (name,) = pushed(grid, 1)
    fake_ray.dead.add(name)
    (answer,) = grid.pull_messages([name])
    assert answer.error.code == ErrorCode.CLIENT_APP_CRASHED
    assert answer.metadata.reply_to_message_id == name


def test_what_a_dead_host_was_to_do_next_is_done_all_the_same(fake_ray):
    grid = RayGrid(Host, 1, 3)
    first, second, third = pushed(grid, 3)
    dying = grid._hosts[0]
    assert dying.given == [first, second]
    fake_ray.dead.add(first)
    (answer,) = grid.pull_messages([first, second, third])
    assert answer.metadata.reply_to_message_id == first
    assert dying.given == [first, second]
    assert grid._hosts[0].given == [second]
    fake_ray.done |= {second, third}
    assert len(list(grid.pull_messages([second, third]))) == 2


def test_a_node_is_told_its_partition(fake_ray):
    grid = RayGrid(Host, 1, 3)
    names = pushed(grid, 3)
    for name in names:
        fake_ray.done.add(name)
        grid.pull_messages(names)
    places = [dict(context.node_config) for context in grid._hosts[0].contexts]
    assert places == [{"partition-id": i, "num-partitions": 3} for i in range(3)]


def test_who_waits_is_woken_by_the_first_answer(fake_ray):
    grid = RayGrid(Host, 1, 1)
    assert isinstance(grid, Waking)
    pushed(grid, 1)
    grid.wait(7.0)
    assert fake_ray.waited[-1] == 7.0


def test_what_the_app_raises_is_an_answer(fake_ray):
    def fails(message, context):
        raise ValueError("no such thing")

    message = Message(RecordDict(), 2, "train")
    message.metadata.__dict__["_message_id"] = "message-1"
    answer = ray_grid._Host(lambda: fails).answer(message, None)
    assert answer.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "ValueError: no such thing" in answer.error.reason


def test_longest_first_and_what_is_alike_in_its_own_order():
    orders = [SimpleNamespace(expected_seconds=x) for x in (1.0, 1.02, 4.0, 1.01, 0.5, 2.0)]
    assert longest_first(orders) == [2, 5, 0, 1, 3, 4]
