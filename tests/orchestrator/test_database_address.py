"""Database URLs: what is understood, what is missing, and that no password is ever shown."""

from __future__ import annotations

import sys

import pytest

from orchestrator.store import open_store, shown_url
from orchestrator.store.address import make_engine, parse_url, scrubbed
from strategies.errors import StoreError


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgres_is_spoken_by_psycopg_however_it_is_spelt(scheme):
    pytest.importorskip("psycopg")
    engine = make_engine(f"{scheme}://u:p@h:5433/runs?connect_timeout=9")
    assert engine.url.drivername == "postgresql+psycopg"
    assert engine.dialect.driver == "psycopg"


def test_another_driver_stays_the_users_choice():
    assert parse_url("postgresql+psycopg2://u@h/runs").drivername == "postgresql+psycopg2"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cret@h/runs",
        "postgresql://u@h/runs?password=s3cret",
        "postgresql://u@h/runs?sslmode=verify-full&sslpassword=s3cret",
    ],
)
def test_a_shown_url_has_no_password(url):
    assert "s3cret" not in shown_url(url)
    assert "***" in shown_url(url) or "password=hidden" in shown_url(url)
    assert "@h/runs" in shown_url(url)


def test_a_drivers_message_loses_its_password_in_every_spelling():
    url = parse_url("postgresql://u:p%20w%2B1@h/runs")
    said = "no user for p w+1 (p%20w%2B1, p+w%2B1)"
    assert scrubbed(said, url) == "no user for *** (***, ***)"


@pytest.mark.parametrize("url", ["no url, s3cret@h/runs", "postgresql://u:s3@cret@h/runs"])
def test_what_is_no_url_is_named_by_its_host_alone(url):
    with pytest.raises(StoreError, match=r"…h/runs.*postgresql://USER:PASSWORD@HOST") as caught:
        open_store(url)
    assert "cret@" not in str(caught.value)
    assert "s3" not in str(caught.value)


def test_a_missing_driver_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"pip install 'perennial\[postgres\]'") as caught:
        open_store("postgresql://u:s3cret@h/missing")
    assert "s3cret" not in str(caught.value)


def test_a_server_that_is_not_there_is_named_at_once():
    pytest.importorskip("psycopg")
    with pytest.raises(
        StoreError, match=r"u:\*\*\*@.*cannot be opened.*PERENNIAL_DATABASE"
    ) as caught:
        open_store("postgresql://u:s3cret@127.0.0.1:1/runs")
    assert "s3cret" not in str(caught.value)
