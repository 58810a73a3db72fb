"""Public keys that tokens may be verified with: which kinds are good enough, and the one algorithm that each is for.

The settings look at their key with this before anything starts; the api verifies with it.
"""

from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key


class PublicKey(NamedTuple):
    """A key with the one algorithm that is its kind's."""

    key: RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
    algorithm: str


def usable(key: object) -> PublicKey | None:
    """The key with its algorithm; None for other kinds, and for RSA of less than 2048 bits."""
    match key:
        case RSAPublicKey() if key.key_size >= 2048:
            return PublicKey(key, "RS256")
        case EllipticCurvePublicKey() if key.curve.name == "secp256r1":
            return PublicKey(key, "ES256")
        case Ed25519PublicKey():
            return PublicKey(key, "EdDSA")
        case _:
            return None


def public_key_of(pem: str) -> PublicKey:
    """The key in a PEM text. Raises ValueError, with nothing of the text in it, for one that cannot be used."""
    try:
        found = usable(load_pem_public_key(pem.encode()))
    except (ValueError, UnsupportedAlgorithm):
        found = None
    if found is None:
        raise ValueError("must be an RSA (2048 bits or more), P-256 or Ed25519 public key in PEM")
    return found
