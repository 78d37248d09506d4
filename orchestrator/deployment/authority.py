"""X.509 certificates of a federation: an authority of its own and a server it vouches for."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_AUTHORITY_LASTS: Final = timedelta(days=3650)
_SERVER_LASTS: Final = timedelta(days=825)
_CLOCKS_DIFFER: Final = timedelta(hours=1)
# The SuperLink's own helpers reach it on the loopback interface.
_ALWAYS: Final = ("localhost", "127.0.0.1", "::1")


def authority_certificate(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A self-signed authority that signs servers and nothing below them, in PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "perennial federation")])
    certificate = (
        _certificate(name, name, key.public_key(), _AUTHORITY_LASTS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def server_certificate(
    key: ec.EllipticCurvePublicKey,
    hosts: Sequence[str],
    authority_pem: bytes,
    authority_key: ec.EllipticCurvePrivateKey,
) -> bytes:
    """A server certificate for ``hosts`` (DNS names and IP addresses) and loopback, in PEM."""
    authority, names = x509.load_pem_x509_certificate(authority_pem), (*hosts, *_ALWAYS)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    alternatives = [_general_name(name) for name in dict.fromkeys(names)]
    certificate = (
        _certificate(subject, authority.subject, key, _SERVER_LASTS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer_id, critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lasts: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    address = as_address(host)
    return x509.IPAddress(address) if address else x509.DNSName(host)


def as_address(
    text: str,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An IP address, or None for anything else."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
