"""The settings of the gateway that are wrong together."""

from __future__ import annotations

import pytest

from service.core.errors import SettingsError
from service.settings import GatewaySettings, load

URL = "https://a1.execute-api.eu-west-1.amazonaws.com/prod"
GOOD = {
    "STEADWIRE_STORE_BACKEND": "dynamodb",
    "STEADWIRE_GATEWAY_ENDPOINT": URL,
    "STEADWIRE_GATEWAY_SECRET": "s" * 32,
}


def test_there_is_none_by_default() -> None:
    assert load({}, {}).gateway == GatewaySettings()
    assert load(GOOD, {}).gateway.endpoint == URL


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"STEADWIRE_STORE_BACKEND": "sqlite"}, 'store.backend = "dynamodb"'),
        ({"STEADWIRE_GATEWAY_ENDPOINT": "wss://a1/prod"}, "begins with https://"),
        ({"STEADWIRE_GATEWAY_ENDPOINT": ""}, "gateway.secret needs gateway.endpoint"),
        ({"STEADWIRE_GATEWAY_SECRET": "s" * 31}, "has 31 characters, and needs 32"),
        ({"STEADWIRE_GATEWAY_SECRET": "ü" * 32}, "printable ASCII"),
        ({"STEADWIRE_GATEWAY_SWEEP_INTERVAL": "101"}, "at most a third"),
    ],
)
def test_mistakes(changes: dict[str, str], mistake: str) -> None:
    with pytest.raises(SettingsError, match=mistake) as refused:
        load(GOOD | changes, {})
    assert "s" * 31 not in str(refused.value)
