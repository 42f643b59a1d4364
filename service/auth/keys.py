"""Keys that verify tokens, each with its algorithms; from the settings and from a JWKS.

The algorithm is derived from the key and never from the token: a secret is for HS*, an
RSA key for RS*, an elliptic curve for the one algorithm of its size (RFC 7518, 3.4),
and Ed25519 for EdDSA (RFC 8037).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWS
from jwt.algorithms import (
    ECAlgorithm,
    HMACAlgorithm,
    OKPAlgorithm,
    RSAAlgorithm,
)
from jwt.exceptions import PyJWTError

from _speedups import check
from service.auth.errors import TokenInvalid
from service.core.errors import CodecError, SettingsError
from service.settings import Secret, TokenSettings

__all__ = [
    "ASYMMETRIC",
    "HMAC",
    "JWS",
    "MAX_KID",
    "Key",
    "KeySet",
    "read_jwks",
    "read_settings",
]

Material = bytes | RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

MAX_KID = 200  # characters; a longer ``kid`` names no key

HMAC = {"HS256": 32, "HS384": 48, "HS512": 64}
"""The algorithms of secrets, and the bytes that each needs (RFC 7518, 3.2)."""

_RSA = frozenset({"RS256", "RS384", "RS512"})
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_EDDSA = "EdDSA"

ASYMMETRIC = _RSA | frozenset(_CURVES.values()) | {_EDDSA}
"""The algorithms of keys that can be published."""

# A shorter key is breakable; with a longer one, a token costs milliseconds of the event
# loop.
_RSA_BITS = range(2048, 8193)

_MAX_KEYS = 100  # of one key set; a set with more is refused


class _Hmac(HMACAlgorithm):
    """HMAC with a key of any length: `read_settings` decides which are too short."""

    def check_key_length(self, key: bytes) -> str | None:
        return None  # PyJWT would print a warning for each token


JWS = PyJWS()
"""Signs and verifies."""

for _name, _hash in (
    ("HS256", HMACAlgorithm.SHA256),
    ("HS384", HMACAlgorithm.SHA384),
    ("HS512", HMACAlgorithm.SHA512),
):
    JWS.unregister_algorithm(_name)
    JWS.register_algorithm(_name, _Hmac(_hash))


class Key:
    """One key, with its algorithms.

    Attributes:
        algorithms: Names as in a token's ``alg``.
        until: Unix seconds from which the key verifies nothing; None for no end.
    """

    __slots__ = ("_material", "algorithms", "until")

    def __init__(
        self,
        material: Material,
        algorithms: frozenset[str],
        until: float | None = None,
    ) -> None:
        self._material = material
        self.algorithms = algorithms
        self.until = until

    def __repr__(self) -> str:
        return f"<Key {' '.join(sorted(self.algorithms))}>"

    def valid(self, now: float) -> bool:
        """Return whether the key may be used at *now*, in Unix seconds."""
        return self.until is None or now < self.until

    def payload(self, token: str, algorithm: str) -> bytes:
        """Return the payload of *token* after verifying its signature.

        Raises:
            TokenInvalid: The signature does not match, or is of another algorithm.
        """
        if algorithm not in self.algorithms:
            raise TokenInvalid("the key is not for its algorithm")
        try:
            decoded = JWS.decode_complete(token, self._material, [algorithm])
        except PyJWTError:
            raise TokenInvalid("the signature does not match") from None
        payload: bytes = decoded["payload"]
        return payload


KeySet = Mapping[str, tuple[Key, ...]]
"""Keys by their ``kid``; one may name several, of different algorithms."""


def read_settings(settings: TokenSettings, where: str) -> tuple[Key, ...]:
    """Return the keys of the settings, in the order in which they are tried.

    Raises:
        SettingsError: A setting is not a key; the text begins with *where*.
    """
    keys = []
    if settings.hmac_secret_key:
        keys.append(
            _secret(
                settings.hmac_secret_key,
                None,
                f"{where}.hmac_secret_key",
                short=settings.allow_short_secrets,
            )
        )
    if settings.hmac_previous_secret_key:
        # An owner of a short secret must be able to change it for a long one.
        keys.append(
            _secret(
                settings.hmac_previous_secret_key,
                settings.hmac_previous_secret_key_valid_until,
                f"{where}.hmac_previous_secret_key",
                short=True,
            )
        )
    for name, kind in (
        ("rsa_public_key", RSAPublicKey),
        ("ecdsa_public_key", EllipticCurvePublicKey),
        ("ed25519_public_key", Ed25519PublicKey),
    ):
        if pem := getattr(settings, name):
            keys.append(_pem(pem, kind, f"{where}.{name}"))
    return tuple(keys)


def read_jwks(text: bytes) -> KeySet:
    """Return the keys of a JWKS (RFC 7517) that can verify tokens.

    It skips keys without a ``kid``, secrets, private keys, keys for another use, weak
    keys, and keys that cannot be read.

    Raises:
        CodecError: It is not a JWKS, or has more than 100 keys.
    """
    try:
        entries = msgspec.json.decode(check(text), type=_Jwks).keys
    except ValueError:
        raise CodecError("it is not a JWKS") from None
    keys: dict[str, tuple[Key, ...]] = defaultdict(tuple)
    for entry in entries:
        kid = entry.get("kid")
        key = _jwk(entry)
        if key is not None and isinstance(kid, str) and 0 < len(kid) <= MAX_KID:
            keys[kid] += (key,)
    return dict(keys)


class _Jwks(msgspec.Struct):
    keys: Annotated[list[dict[str, Any]], msgspec.Meta(max_length=_MAX_KEYS)]


def _secret(secret: Secret, until: float | None, where: str, *, short: bool) -> Key:
    material = secret.encode()
    # The settings have decided whether there may be a secret too short for HS256.
    algorithms = frozenset(
        name
        for name, least in HMAC.items()
        if short or name == "HS256" or len(material) >= least
    )
    try:
        JWS.encode(b"", material, "HS256")
    except PyJWTError:
        # PyJWT refuses a secret that looks like a public key; better now than later.
        raise SettingsError(f"{where} is a public key, not a secret") from None
    return Key(material, algorithms, until)


def _pem(pem: str, kind: type, where: str) -> Key:
    # In variables of the environment line ends are often the two characters \n, which
    # no PEM has.
    text = pem.replace("\\r", "").replace("\\n", "\n")
    try:
        material = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise SettingsError(f"{where} is not a public key in PEM") from None
    if not isinstance(material, kind):
        raise SettingsError(f"{where} is a key of another kind")
    algorithms = _algorithms(material)
    if not algorithms:
        raise SettingsError(
            f"{where} must have 2048 to 8192 bits"
            if isinstance(material, RSAPublicKey)
            else f"{where} must be of the curve P-256, P-384 or P-521"
        )
    return Key(material, algorithms)  # type: ignore[arg-type]  # one of the kinds


def _algorithms(material: object) -> frozenset[str]:
    match material:
        case RSAPublicKey() if material.key_size in _RSA_BITS:
            return _RSA
        case EllipticCurvePublicKey() if material.curve.name in _CURVES:
            return frozenset({_CURVES[material.curve.name]})
        case Ed25519PublicKey():
            return frozenset({_EDDSA})
    return frozenset()


_KINDS = {
    "RSA": RSAAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
    "OKP": OKPAlgorithm.from_jwk,
}


def _jwk(entry: dict[str, Any]) -> Key | None:
    if "d" in entry or entry.get("use", "sig") != "sig":
        return None
    operations = entry.get("key_ops")
    if operations is not None and "verify" not in _listed(operations):
        return None
    kind = entry.get("kty")
    if not isinstance(kind, str) or kind not in _KINDS:
        return None
    try:
        material = _KINDS[kind](entry)
    except Exception:
        # Two libraries parse untrusted input, and do not document what they raise.
        return None
    algorithms = _algorithms(material)
    if "alg" in entry:
        # RFC 9864 gives EdDSA on this curve its own name.
        named = _EDDSA if entry["alg"] == "Ed25519" else entry["alg"]
        algorithms = frozenset(name for name in algorithms if name == named)
    if not algorithms:
        return None
    return Key(material, algorithms)  # type: ignore[arg-type]  # one of the kinds


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
