"""A federation of real processes goes on, or can be continued, whichever of them is killed."""

from __future__ import annotations

import json

import pytest

from tests import postgres
from tests.chaos.deployed import RESUMED, WAITED_FOR, carry_out

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_every_killed_process_leaves_a_run_that_ends_correctly(tmp_path):
    found = carry_out(tmp_path, (WAITED_FOR, RESUMED))
    told = json.dumps(found, indent=2)
    assert found["kills"] >= (9 if postgres.missing() else 13), told
    assert found["completed"] == found["kills"], told
    assert found["clients_gone"] == [], told
    peace, waited_for, resumed = found["runs"]
    assert waited_for["resumes"] == 0, told
    assert resumed["lost_replies"] == [], told
    assert resumed["checkpoint"] == peace["checkpoint"], told
