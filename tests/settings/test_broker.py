"""The settings of the broker that are wrong together."""

from __future__ import annotations

import pytest

from service.core.errors import SettingsError
from service.settings import BrokerSettings, load

GOOD = {
    "STEADWIRE_STORE_BACKEND": "dynamodb",
    "STEADWIRE_BROKER_URL": "redis://:hunter2@valkey.internal:6379",
    "STEADWIRE_BROKER_KEY": "k" * 32,
}


def test_there_is_none_by_default() -> None:
    assert load({}, {}).broker == BrokerSettings()
    settings = load(GOOD, {})
    assert settings.broker.url.encode() == GOOD["STEADWIRE_BROKER_URL"].encode()
    for secret in ("hunter2", "k" * 32):
        assert secret not in repr(settings)


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"STEADWIRE_STORE_BACKEND": "sqlite"}, 'store.backend = "dynamodb"'),
        ({"STEADWIRE_BROKER_URL": "http://:hunter2@valkey"}, "begin with redis://"),
        ({"STEADWIRE_BROKER_URL": ""}, "broker.key needs broker.url"),
        ({"STEADWIRE_BROKER_KEY": "k" * 31}, "has 31 bytes, and needs 32"),
        ({"STEADWIRE_BROKER_KEY": ""}, "has 0 bytes"),
    ],
)
def test_mistakes(changes: dict[str, str], mistake: str) -> None:
    with pytest.raises(SettingsError, match=mistake) as refused:
        load(GOOD | changes, {})
    assert "hunter2" not in str(refused.value)
    assert "k" * 31 not in str(refused.value)
