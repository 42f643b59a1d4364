"""Tokens for tests: valid ones, and one of each kind of invalid token."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import PyJWS
from jwt.algorithms import RSAAlgorithm

__all__ = [
    "AUDIENCE",
    "BAD",
    "SECRET",
    "settings",
    "signed",
    "connection",
    "jwks",
    "make",
    "subscription",
]

SECRET = "the secret of the tests, which has enough bytes"
AUDIENCE = "chat"


@cache
def _private() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@cache
def public_pem() -> str:
    """Return the public key that the server has beside its secret."""
    text = (
        _private()
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return text.decode()


def jwks(kid: str) -> dict[str, Any]:
    """Return that public key as an issuer publishes it."""
    entry = RSAAlgorithm.to_jwk(_private().public_key(), as_dict=True)
    entry.pop("key_ops", None)
    return {"keys": [{**entry, "kid": kid}]}


def settings(**more: str) -> dict[str, str]:
    """Return settings with a secret, a public key and an audience."""
    return {
        "STEADWIRE_TOKEN_HMAC_SECRET_KEY": SECRET,
        "STEADWIRE_TOKEN_RSA_PUBLIC_KEY": public_pem(),
        "STEADWIRE_TOKEN_AUDIENCE": AUDIENCE,
        **more,
    }


def make(
    claims: dict[str, Any], *, algorithm: str = "HS256", kid: str | None = None
) -> str:
    """Return a token that is as good as its claims."""
    payload = json.dumps({"aud": AUDIENCE, **claims}).encode()
    key = SECRET.encode() if algorithm.startswith("HS") else _private()
    headers = None if kid is None else {"kid": kid}
    return PyJWS().encode(payload, key, algorithm, headers)


def signed(claims: dict[str, Any], secret: str, algorithm: str = "HS256") -> str:
    """Return a token with *claims* and no others; the secret may be short."""
    text = f"{_b64({'alg': algorithm, 'typ': 'JWT'})}.{_b64(claims)}"
    hash_name = algorithm.replace("HS", "sha")
    mac = hmac.new(secret.encode(), text.encode(), hash_name).digest()
    return f"{text}.{_b64(mac)}"


def connection(
    user: str,
    *,
    seconds: float | None = 3600,
    algorithm: str = "HS256",
    kid: str | None = None,
    **claims: Any,
) -> str:
    """Return a connection token; *seconds* from now it expires, None for never."""
    every = {"sub": user, **_expiry(seconds), **claims}
    return make(every, algorithm=algorithm, kid=kid)


def subscription(
    user: str, channel: str, *, seconds: float | None = 3600, **claims: Any
) -> str:
    """Return a subscription token."""
    return make({"sub": user, "channel": channel, **_expiry(seconds), **claims})


def _expiry(seconds: float | None) -> dict[str, float]:
    return {} if seconds is None else {"exp": time.time() + seconds}


def _expired(claims: dict[str, Any]) -> str:
    return make({**claims, "exp": time.time() - 1})


def _tampered(claims: dict[str, Any]) -> str:
    # The signature belongs to another payload: the holder gave itself more time.
    head, _, signature = make(claims).split(".")
    return f"{head}.{_b64({**claims, 'aud': AUDIENCE, 'exp': 4e9})}.{signature}"


def _wrong_audience(claims: dict[str, Any]) -> str:
    return make({**claims, "aud": "another service"})


def _unsigned(claims: dict[str, Any]) -> str:
    body = _b64({**claims, "aud": AUDIENCE})
    return f"{_b64({'alg': 'none', 'typ': 'JWT'})}.{body}."


def _confused(claims: dict[str, Any]) -> str:
    # RFC 8725, 2.1: the public key, which everybody has, taken for a secret.
    text = f"{_b64({'alg': 'HS256'})}.{_b64({**claims, 'aud': AUDIENCE})}"
    mac = hmac.new(public_pem().encode(), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def _relabelled(claims: dict[str, Any]) -> str:
    # The reverse: signed with the secret, and labelled RS256.
    _, body, signature = make(claims).split(".")
    return f"{_b64({'alg': 'RS256'})}.{body}.{signature}"


def _other_key(claims: dict[str, Any]) -> str:
    payload = json.dumps({"aud": AUDIENCE, **claims}).encode()
    return PyJWS().encode(payload, b"another secret, of enough bytes too", "HS256")


BAD: dict[str, Callable[[dict[str, Any]], str]] = {
    "expired": _expired,
    "tampered": _tampered,
    "wrong audience": _wrong_audience,
    "alg none": _unsigned,
    "HS for RS": _confused,
    "RS for HS": _relabelled,
    "another key": _other_key,
    "no token": lambda claims: "no-token-at-all",
}
"""Makers of tokens that must not be believed, each from the claims of a good one."""


def _b64(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")
