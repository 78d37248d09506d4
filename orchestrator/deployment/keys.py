"""Private and public keys: how they are read, written and named."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from strategies.errors import ConfigError, Fault


def load_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A private key of ours in PEM.

    Raises: ConfigError.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("certs", [Fault(str(path), str(error), "a private key in PEM")]) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("certs", [Fault(str(path), type(key).__name__, "an elliptic-curve key")])
    return key


def load_node_key(path: Path, *, key: str) -> ec.EllipticCurvePublicKey:
    """The public half of a node's private key file.

    Raises: ConfigError naming the option ``key``.
    """
    expected = "a node's private key, as `perennial certs` makes it (nodes/NAME.key)"
    try:
        loaded = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError("client", [Fault(key, f"{path}: {error.strerror}", expected)]) from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("client", [Fault(key, f"{path}: {error}", expected)]) from None
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        found = f"{path}: {type(loaded).__name__}"
        raise ConfigError("client", [Fault(key, found, expected)])
    return loaded.public_key()


def load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """A node's public key file.

    Raises: ConfigError.
    """
    expected = "a node's public key, as `perennial certs` makes it"
    try:
        loaded = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("nodes", [Fault(str(path), str(error), expected)]) from None
    if not isinstance(loaded, ec.EllipticCurvePublicKey):
        raise ConfigError("nodes", [Fault(str(path), type(loaded).__name__, expected)])
    return loaded


def pem_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """The form in which Flower sends and keeps node keys."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def ssh_line(key: ec.EllipticCurvePublicKey) -> bytes:
    """Algorithm and key in base64, as in a ``.pub`` file."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """``SHA256:…`` as ``ssh-keygen -l`` shows it."""
    blob = base64.b64decode(ssh_line(key).split()[1])
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"


def tls_key_file(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Content of a private key file in PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def node_key_file(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Content of a ``.key`` file, in the OpenSSH format."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def public_key_file(key: ec.EllipticCurvePrivateKey, comment: str) -> bytes:
    """Content of a ``.pub`` file."""
    return ssh_line(key.public_key()) + b" " + comment.encode() + b"\n"
