"""What is read off Flower's output, and what is made of command-line words."""

from __future__ import annotations

import pytest

from orchestrator.cli.connecting import in_bytes
from orchestrator.deployment.client import Client, ClientOptions
from orchestrator.deployment.flower import Address
from orchestrator.deployment.reading import NodeSigns, refusal, still_connected, trainer_refusal
from strategies.errors import ConfigError

GREEN, PLAIN = "\x1b[92mINFO \x1b[0m:     ", "INFO :     "
ROUND = (
    "[RUN 7, ROUND 1]",
    "Receiving: train message (ID: abc)",
    "Received successfully",
    "Sending: train message (ID: def)",
    "Sent successfully",
)


@pytest.mark.parametrize("prefix", [GREEN, PLAIN])
def test_connection_and_answers_are_counted(prefix):
    signs = NodeSigns()
    signs.read_supernode(f"{prefix} SuperNode ID: 123")
    assert signs.connected
    for line in ROUND[:2]:
        signs.read_supernode(prefix + line)
    assert (signs.answering, signs.answers) == ("train", 0)
    for line in ROUND[2:]:
        signs.read_supernode(prefix + line)
    assert (signs.answering, signs.answers) == ("", 1)
    signs.read_supernode(f"{prefix}Connection attempt failed, retrying in 1.00 seconds")
    assert not signs.connected


@pytest.mark.parametrize(
    "end", ["Failed to send message x: y", "Run ID 7 is not in. Ignoring reply message x."]
)
def test_only_an_answer_to_an_order_that_was_sent_counts(end):
    signs = NodeSigns()
    for line in (*ROUND[:4], end):
        signs.read_supernode(line)
    assert (signs.answering, signs.answers) == ("", 0)
    for line in (ROUND[1].replace("train", "query"), ROUND[4]):
        signs.read_supernode(line)
    assert signs.answers == 0


def test_flower_prints_what_is_read():
    """The words are Flower's, so a new version of it may change them."""
    import inspect

    from flwr.supercore.retry import http_retry
    from flwr.supernode import fleet_http_connection, start_client_internal

    source = "".join(
        inspect.getsource(module)
        for module in (start_client_internal, http_retry, fleet_http_connection)
    )
    for words in (
        "SuperNode ID: %s", "Receiving: %s message", "Received successfully",
        "Sending: %s message", "Sent successfully", "Failed to send message",
        "Ignoring reply message", "Ignoring message", "Failed to receive message",
        "Connection attempt failed", "Connection successful after", "[code: {flower_error.code}]",
    ):  # fmt: skip
        assert words in source, words


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Exit Code: 305", "[code: 2004] unknown node key SHA256:ab"], "does not know this node"),
        (["[code: 2001] SuperNode registration is disabled"], "give --auth-key"),
        (["[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"], "cannot be trusted"),
        (["Unable to parse the private key file."], "is no node key"),
    ],
)
def test_reasons_that_stay_are_named(lines, expected):
    assert expected in (refusal(lines, address="s:1", key="SHA256:cd") or "")


@pytest.mark.parametrize(
    "lines", [[], ["[code: 2004] Failed to activate SuperNode."], ["Connection refused"]]
)
def test_reasons_that_may_pass_are_not(lines):
    assert refusal(lines, address="s:1", key="SHA256:cd") is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("500kB", 500_000), ("2GB", 2 * 10**9), ("1.5GiB", 3 * 2**29), ("64", 64), ("10 m", 10**7)],
)
def test_sizes(text, size):
    assert in_bytes(text, "--memory-limit") == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "2XB", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="--memory-limit"):
        in_bytes(text, "--memory-limit")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("h:80", "h", 80), ("10.0.0.1:1", "10.0.0.1", 1), ("[::1]:9", "::1", 9)],
)
def test_addresses(text, host, port):
    assert Address.parse(text, key="--on") == Address(host=host, port=port)
    assert str(Address(host=host, port=port)) == text


@pytest.mark.parametrize("text", ["h", "h:", ":80", "h:x", "h:70000", "https://h:80", "h:0"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="--on"):
        Address.parse(text, key="--on")


def options(tmp_path, **changes):
    given = {
        "superlink": Address(host="server", port=8000),
        "root_certificates": None,
        "auth_key": None,
        "fingerprint": "",
        "insecure": True,
        "number": 1,
        "clients": 2000,
        "data": tmp_path,
        "kind": "cpu",
        "memory_limit_bytes": None,
        "uplink_limit_bytes_per_second": None,
        "work": tmp_path / "work",
    }
    return ClientOptions(**(given | changes))


def test_the_status_line_says_who_what_where_and_how_far(tmp_path):
    client = Client.prepare(options(tmp_path))
    assert client.status(0.0) == (
        "client-0001 · cpu · connecting to server:8000 · trainer starting · 0 answers"
    )
    client.signs.read_trainer("trainer listening on unix:/x")
    assert "trainer warm" in client.status(0.0)
    client.supernode.failures, client.supernode.reason = 2, "no SuperLink answers at server:8000"
    client.supernode.restart_at = 9.0
    assert "no SuperLink answers at server:8000, again in 4 s" in client.status(5.0)


def test_settings_leave_out_what_was_not_said(tmp_path):
    plain = options(tmp_path, kind="auto").trainer_settings()
    assert plain.keys() == {"cache_folder", "state_folder", "data_folder", "num_threads"}
    limited = options(tmp_path, kind="edge", memory_limit_bytes=5, uplink_limit_bytes_per_second=6)
    assert limited.trainer_settings().keys() - plain.keys() == {
        "kind", "memory_limit_bytes", "uplink_limit_bytes_per_second",
    }  # fmt: skip


def test_the_trainers_token_is_its_own(tmp_path):
    Client.prepare(options(tmp_path))
    token = tmp_path / "work" / "trainer.token"
    assert token.stat().st_mode & 0o777 == 0o600
    first = token.read_text()
    Client.prepare(options(tmp_path))
    assert token.read_text() != first


def test_a_trainer_with_unusable_settings_is_given_up_with_its_words():
    assert "kind: found 'x'" in (
        trainer_refusal(2, ["settings.json: 1 fault", "kind: found 'x'"]) or ""
    )
    assert trainer_refusal(1, ["Traceback"]) is None


def test_the_trainer_reads_the_settings_we_write(tmp_path):
    from clients.settings import read_settings

    Client.prepare(options(tmp_path, kind="auto"))
    settings = read_settings(tmp_path / "work" / "settings.json")
    assert settings.data_folder == tmp_path
    assert settings.state_folder == tmp_path / "work" / "clients"


def test_a_node_that_was_killed_is_taken_for_connected_still_and_a_stranger_is_not():
    failed = "[code: 2004] Failed to activate SuperNode."
    assert "s:1 takes this node for connected still" in still_connected([failed], address="s:1")
    assert refusal([failed], address="s:1", key="k") is None
    stranger = "[code: 2004] unknown node key SHA256:x"
    assert still_connected([stranger], address="s:1") is None
    assert still_connected(["[code: 2004] a node without a readable key"], address="s:1") is None
    assert still_connected(["something else"], address="s:1") is None
