"""What `perennial certs` makes is what TLS and Flower take, and nothing is ever overwritten."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.deployment.certificates import CertificateFolder, make_certificates
from orchestrator.deployment.keys import (
    fingerprint,
    load_node_key,
    load_public_key,
    pem_of,
)
from strategies.errors import ConfigError

HOSTS = ["server.example", "10.0.0.7", "2001:db8::7"]


@pytest.fixture
def folder(tmp_path):
    folder = CertificateFolder(tmp_path / "certs")
    make_certificates(folder, HOSTS, ["client-0", "client-1"])
    return folder


def names_of(folder):
    certificate = x509.load_pem_x509_certificate(folder.server.read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return {*found.get_values_for_type(x509.DNSName), *addresses}


def handshake(folder, host, authority):
    """A client's view of a server that shows the folder's certificate."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder.server, folder.server_key)
    client = ssl.create_default_context(cafile=authority)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    here, there = socket.socketpair()

    def answer():
        try:
            server.wrap_socket(there, server_side=True).close()
        except OSError:
            there.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with client.wrap_socket(here, server_hostname=host):
            pass
    finally:
        here.close()
        thread.join()


def test_the_server_certificate_names_what_was_asked_and_loopback(folder):
    assert names_of(folder) == {*HOSTS, "localhost", "127.0.0.1", "::1"}


@pytest.mark.parametrize("host", [*HOSTS, "localhost", "127.0.0.1"])
def test_a_client_with_our_authority_trusts_it(folder, host):
    handshake(folder, host, folder.authority)


def test_another_name_or_another_authority_is_not_trusted(folder, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname mismatch"):
        handshake(folder, "other.example", folder.authority)
    other = CertificateFolder(tmp_path / "other")
    make_certificates(other, HOSTS, [])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(folder, "localhost", other.authority)


def test_node_keys_are_pairs_that_flower_reads(folder):
    from flwr.cli.supernode.register import try_load_public_key

    private = load_node_key(folder.private_key("client-0"), key="--auth-key")
    public = load_public_key(folder.public_key("client-0"))
    assert pem_of(private) == pem_of(public) == try_load_public_key(folder.public_key("client-0"))
    assert isinstance(private.curve, ec.SECP384R1)
    assert fingerprint(public) != fingerprint(load_public_key(folder.public_key("client-1")))


def test_a_fingerprint_is_what_ssh_keygen_shows(folder):
    path = folder.public_key("client-0")
    try:
        shown = subprocess.run(
            ["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True
        ).stdout
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not here")
    assert fingerprint(load_public_key(path)) == shown.split()[1]


def test_only_their_owner_reads_the_files(folder):
    files = [path for path in folder.root.rglob("*") if path.is_file()]
    assert len(files) == 9
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {folder.root.stat().st_mode & 0o777, folder.nodes.stat().st_mode & 0o777} == {0o700}


def test_nothing_is_overwritten_and_nothing_half_made(folder):
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError) as refused:
        make_certificates(folder, ["again.example"], ["client-2", "client-1"])
    assert {fault.key.rpartition("/")[2] for fault in refused.value.faults} == {
        "server.crt",
        "server.key",
        "client-1.key",
        "client-1.pub",
    }
    assert before == {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}


def test_nodes_come_later_and_the_authority_stays(folder):
    authority = folder.authority.read_bytes()
    written = make_certificates(folder, [], ["late"])
    assert [item.path.name for item in written] == ["late.key", "late.pub"]
    assert folder.authority.read_bytes() == authority


def test_a_new_server_certificate_comes_from_the_same_authority(folder):
    folder.server.unlink()
    folder.server_key.unlink()
    make_certificates(folder, ["new.example"], [])
    handshake(folder, "new.example", folder.authority)


@pytest.mark.parametrize(
    ("hosts", "nodes", "key"),
    [
        ([], ["a"], "--host"),
        (["a host"], [], "--host"),
        (["host:8000"], [], "--host"),
        (["h"], ["../a"], "--node"),
        (["h"], [""], "--node"),
        (["h"], ["a", "a"], "--node"),
    ],
)
def test_what_cannot_be_made_is_named(tmp_path, hosts, nodes, key):
    with pytest.raises(ConfigError) as refused:
        make_certificates(CertificateFolder(tmp_path / "c"), hosts, nodes)
    assert [fault.key for fault in refused.value.faults] == [key]
    assert not (tmp_path / "c").exists()


def test_a_public_key_is_no_private_key(folder):
    with pytest.raises(ConfigError, match="--auth-key"):
        load_node_key(folder.public_key("client-0"), key="--auth-key")
