"""Public keys for tokens: which kinds are accepted, and the algorithms for each.

The settings check their key here before the program starts; the api verifies tokens with it. The algorithms follow from
the key, never from the token (RFC 8725, 3.1).
"""

from typing import Final, NamedTuple, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

MIN_RSA_BITS: Final = 2048
_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_OF_CURVE: Final = {"secp256r1": ("ES256",), "secp384r1": ("ES384",), "secp521r1": ("ES512",)}


class PublicKey(NamedTuple):
    """A key with the algorithms that it may be used with, one or more."""

    key: RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
    algorithms: tuple[str, ...]

    def narrowed_to(self, algorithm: object) -> Self | None:
        """The same key for this algorithm alone; None where the algorithm does not fit the key."""
        return self._replace(algorithms=(algorithm,)) if algorithm in self.algorithms else None


def usable(key: object) -> PublicKey | None:
    """The key with its algorithms; None for other kinds and curves, and for RSA of less than 2048 bits."""
    match key:
        case RSAPublicKey() if key.key_size >= MIN_RSA_BITS:
            return PublicKey(key, _RSA)
        case EllipticCurvePublicKey() if key.curve.name in _OF_CURVE:
            return PublicKey(key, _OF_CURVE[key.curve.name])
        case Ed25519PublicKey():
            return PublicKey(key, ("EdDSA",))
        case _:
            return None


def public_key_of(pem: str) -> PublicKey:
    """The key in a PEM text. Raises ValueError, with nothing of the text in it, for one that cannot be used."""
    try:
        found = usable(load_pem_public_key(pem.encode()))
    except (ValueError, UnsupportedAlgorithm):
        found = None
    if found is None:
        raise ValueError("must be an RSA (2048 bits or more), P-256, P-384, P-521 or Ed25519 public key in PEM")
    return found
