"""JSON fields that tokens, hook answers and API requests share: payloads, overrides.

A payload stands in its field as any JSON, or in the field ``b64…`` beside it as base64
of JSON text, which wins. The document around them has been found valid as a whole.
"""

from __future__ import annotations

import base64
from typing import Annotated

import msgspec
from msgspec import UNSET, Raw, UnsetType

from _speedups import check
from service.core import model
from service.core.errors import BAD_REQUEST, ReplyError
from service.core.model import NO_OVERRIDE, RawJson, size_of

__all__ = [
    "Base64",
    "BoolValue",
    "Override",
    "ServerSubscription",
    "optional_payload_of",
    "override_of",
    "payload_of",
]

Base64 = Annotated[
    str, msgspec.Meta(description="Base64 of JSON; wins over the field without b64.")
]


class BoolValue(msgspec.Struct):
    """A boolean that may be absent."""

    value: bool = False


class Override(msgspec.Struct):
    """Options of the namespace that are different for these subscriptions."""

    presence: BoolValue | None = None
    join_leave: BoolValue | None = None
    force_push_join_leave: BoolValue | None = None
    force_recovery: BoolValue | None = None
    force_positioning: BoolValue | None = None


class ServerSubscription(msgspec.Struct, omit_defaults=True):
    """The options of a server-side subscription, as in a connection token."""

    info: Raw | UnsetType = UNSET
    b64info: Base64 | None = None
    data: Raw | UnsetType = UNSET
    b64data: Base64 | None = None
    override: Override | None = None


def override_of(fields: Override | None) -> model.Override:
    """Return an override as the core has it."""
    if fields is None:
        return NO_OVERRIDE
    options: tuple[BoolValue | None, ...] = msgspec.structs.astuple(fields)
    return model.Override(*(None if one is None else one.value for one in options))


def payload_of(
    value: Raw | UnsetType, encoded: str | None, limit: int | None = None
) -> RawJson | None:
    """Return a payload from its two fields, None when neither is there.

    Args:
        value: The field with JSON.
        encoded: The field with base64.
        limit: Most bytes of the payload; None for no limit.

    Raises:
        ReplyError: 107 when the base64 does not hold JSON, or the limit is exceeded.
    """
    if encoded:
        try:
            text = check(base64.b64decode(encoded, validate=True))
        except ValueError:
            raise ReplyError(BAD_REQUEST) from None
    elif value is UNSET:
        return None
    else:
        # A part of a document that was found valid as a whole and without newlines.
        text = bytes(value).decode()
    if limit is not None and size_of(text) > limit:
        raise ReplyError(BAD_REQUEST)
    return RawJson(text)


def optional_payload_of(
    value: Raw | UnsetType, encoded: str | None, limit: int | None = None
) -> RawJson | None:
    """Return a payload as `payload_of` does, but None for null too."""
    text = payload_of(value, encoded, limit)
    return None if text == "null" else text
