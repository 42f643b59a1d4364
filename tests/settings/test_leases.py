"""Leases of channels: on by their setting, or with a gateway before the service."""

from __future__ import annotations

import json

import pytest

from service.core.errors import SettingsError
from service.settings import load

GATEWAY = {
    "STEADWIRE_STORE_BACKEND": "dynamodb",
    "STEADWIRE_GATEWAY_ENDPOINT": "https://x.execute-api.eu-west-1.amazonaws.com/prod",
}


def test_a_gateway_needs_leases():
    assert load({}, {}).table.leases is False
    assert load({"STEADWIRE_DYNAMODB_LEASES": "true"}, {}).table.leases is True
    assert load(GATEWAY, {}).table.leases is True


def test_offsets_may_not_restart_while_a_connection_lives():
    kept = {"history_size": 10, "history_ttl": 60, "history_meta_ttl": 7200}
    options = {"STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(kept)}
    load(options, {})
    with pytest.raises(SettingsError, match="history_meta_ttl must be over 7200 s"):
        load({**options, **GATEWAY}, {})
