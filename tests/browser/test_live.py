"""A run watched from its first round to its last, without touching the page."""

from __future__ import annotations

import threading

import pytest

from orchestrator.conduct import submit
from orchestrator.launch import run_in_process
from orchestrator.store.base import RunStatus
from tests.conftest import tiny_config
from tests.e2e.federation import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_NOTE = """
window.same = true;
window.seen = [];
const note = () => {
  const now = [
    document.querySelector("progress").value,
    document.querySelectorAll(".matrix tbody tr:not(.pending)").length,
    document.querySelector("main .status").textContent,
  ];
  const last = window.seen.at(-1);
  if (JSON.stringify(now) !== JSON.stringify(last)) window.seen.push(now);
};
note();
new MutationObserver(note).observe(document.body, {
  subtree: true, childList: true, characterData: true, attributes: true });
"""


def test_a_live_run_is_followed_from_the_first_round_to_the_last(home, watched):
    from tests.browser.serving import served

    # Rounds take a tenth of a second, and the page hears of them once a second.
    config = tiny_config(name="watched", learning__rounds_per_task=30)
    run_id, ended = submit(config, home), []
    working = threading.Thread(
        target=lambda: ended.append(run_in_process(run_id, config, home, on_progress=lambda: None))
    )
    with served(home) as address:
        page = watched.page
        page.goto(f"{address}/runs/{run_id}")
        page.wait_for_selector("#live-state[data-state=live]")
        summary = page.locator("summary", has_text="All").first
        summary.click()
        summary.focus()
        page.evaluate(_NOTE)
        working.start()
        page.wait_for_selector("main .status.completed", timeout=300_000)
        working.join(timeout=120)
        assert eventually(lambda: page.locator("progress").evaluate("bar => bar.value === 1"), 60)
        seen, jumps = page.evaluate("window.seen"), page.evaluate("window.jumps")
        assert page.evaluate("window.same"), "the page was loaded again"
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
        assert page.locator("details[open]").count() == 1
        assert page.locator(".matrix tbody tr.pending").count() == 0
        assert page.locator("#live-state").text_content() == "This run has ended"
    assert ended == [RunStatus.COMPLETED]
    shares = [share for share, _, _ in seen]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert len(set(shares)) >= 4, "rounds were shown as they came"
    rows = [count for _, count, _ in seen]
    assert rows == sorted(rows)
    assert rows[-1] == 3, "untrained, and after each of two tasks"
    assert len(set(rows)) >= 3, "the matrix grew task by task"
    assert {"created", "running", "completed"} >= {status for _, _, status in seen}
    assert jumps < 0.1, "the layout stood still"
