"""Keys of every kind, and tokens made with them byte by byte."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from service.auth.keys import JWS
from service.auth.verifier import Verifier
from service.settings import Secret, Settings, TokenSettings

NOW = 1_700_000_000.0
SECRET = "0123456789abcdef" * 4  # 64 bytes: enough for every HS*
OTHER_SECRET = "fedcba9876543210" * 4

HMAC = ("HS256", "HS384", "HS512")
RSA = ("RS256", "RS384", "RS512")
CURVES = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}
ALGORITHMS = (*HMAC, *RSA, *CURVES, "EdDSA")


@cache
def private(algorithm: str, number: int = 0) -> Any:
    """Return a private key; another *number* is another key."""
    if algorithm in HMAC:
        return (OTHER_SECRET if number else SECRET).encode()
    if algorithm in RSA:
        return _rsa(number)
    if algorithm in CURVES:
        return ec.generate_private_key(CURVES[algorithm]())
    return ed25519.Ed25519PrivateKey.generate()


@cache
def _rsa(number: int, bits: int = 2048) -> Any:
    return rsa.generate_private_key(65537, bits)


def pem(key: Any) -> str:
    text: bytes = key.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    return text.decode()


@cache
def weak_pem() -> str:
    return pem(_rsa(0, 1024))


@cache
def odd_curve_pem() -> str:
    return pem(ec.generate_private_key(ec.SECP256K1()))


@cache
def ed448_pem() -> str:
    return pem(ed448.Ed448PrivateKey.generate())


def settings_of(algorithm: str, **more: Any) -> TokenSettings:
    """Return settings with the one key for *algorithm*."""
    if algorithm in HMAC:
        return TokenSettings(hmac_secret_key=Secret(SECRET), **more)
    name = {"R": "rsa_public_key", "E": "ecdsa_public_key"}[algorithm[0]]
    if algorithm == "EdDSA":
        name = "ed25519_public_key"
    return TokenSettings(**{name: pem(private(algorithm)), **more})


def verifier(token: TokenSettings, now: float = NOW, **more: Any) -> Verifier:
    remote = more.pop("remote", None)
    return Verifier(Settings(token=token, **more), lambda: now, remote)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def sign(
    claims: Any,
    algorithm: str = "HS256",
    *,
    key: Any = None,
    headers: dict[str, Any] | None = None,
) -> str:
    """Return a token; *claims* may be bytes, to be no JSON at all."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    key = private(algorithm) if key is None else key
    return JWS.encode(payload, key, algorithm, headers)


def forge(header: Any, claims: Any, secret: bytes | None = None) -> str:
    """Return a token with any header, unsigned or with an HMAC of any secret."""
    text = f"{b64(_json(header))}.{b64(_json(claims))}"
    if secret is None:
        return text + "."
    mac = hmac.new(secret, text.encode(), hashlib.sha256).digest()
    return f"{text}.{b64(mac)}"


def _json(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def jwk(algorithm: str, kid: str, **more: Any) -> dict[str, Any]:
    """Return the public key for *algorithm* as an issuer publishes it."""
    public = private(algorithm).public_key()
    kind: Any = ECAlgorithm if algorithm in CURVES else OKPAlgorithm
    entry = (RSAAlgorithm if algorithm in RSA else kind).to_jwk(public, as_dict=True)
    entry.pop("key_ops", None)
    return {**entry, "kid": kid, **more}


@dataclass
class Published:
    """`auth.RemoteKeys` that never have to fetch."""

    keys: dict[str, Any]

    def known(self, kid: str) -> Any:
        return self.keys.get(kid)

    async def key(self, kid: str) -> None:
        raise AssertionError("nobody waits for it in these tests")
