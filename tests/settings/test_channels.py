"""Namespaces and their options: which are accepted, and how a mistake is named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from service.core.errors import SettingsError
from service.settings import load


def refusal(overrides: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as refused:
        load({}, overrides)
    return "; ".join(refused.value.mistakes)


def namespace(**options: Any) -> dict[str, Any]:
    return {"channels": {"namespaces": [{"name": "chat", **options}]}}


KEPT = {"history_size": 10, "history_ttl": 60}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"name": "a"}, ["'a'", "two or more"]),
        ({"name": ""}, ["''"]),
        ({"name": "a b"}, ["'a b'"]),
        ({"name": "a:b"}, ["'a:b'"]),
        ({"name": "$ab"}, ["'$ab'"]),
        ({"name": "ab\n"}, ["two or more"]),
        ({"history_size": 10}, ["chat", "history_size", "history_ttl"]),
        ({"history_ttl": 60}, ["chat", "history_size", "history_ttl"]),
        ({"force_recovery": True}, ["chat", "force_recovery", "history_size"]),
        ({"allow_recovery": True}, ["chat", "allow_recovery"]),
        ({"force_positioning": True}, ["chat", "force_positioning"]),
        ({"allow_positioning": True}, ["chat", "allow_positioning"]),
        ({**KEPT, "history_meta_ttl": 59}, ["chat", "history_meta_ttl"]),
        ({"history_size": -1}, ["history_size"]),
        ({"history_size": 10, "history_ttl": -1}, ["history_ttl"]),
        ({"history_size": 10, "history_ttl": float("inf")}, ["history"]),
        ({"history_size": 10, "history_ttl": float("nan")}, ["history"]),
        ({"force_push_join_leave": True}, ["force_push_join_leave", "join_leave"]),
        ({"delta_publish": True}, ["chat", "delta_publish", "allowed_delta_types"]),
        ({"allowed_delta_types": ["xdelta3"]}, ["allowed_delta_types"]),
        ({"allowed_delta_types": "fossil"}, ["allowed_delta_types"]),
        ({"channel_regex": "("}, ["chat", "channel_regex"]),
        ({"presence": "sometimes"}, ["presence"]),
        ({"presence": 5}, ["presence"]),
    ],
    ids=str,
)
def test_a_namespace_that_cannot_be_is_named(
    options: dict[str, Any], names: list[str]
) -> None:
    message = refusal(namespace(**options))
    for name in [*names, "namespaces"]:
        assert name in message


def test_the_channels_without_a_namespace_are_checked_too() -> None:
    overrides = {"channels": {"without_namespace": {"history_size": 0}}}
    assert "channels.without_namespace" in refusal(overrides)


def test_a_namespace_defined_twice_is_named() -> None:
    twice = {"channels": {"namespaces": [{"name": "chat"}, {"name": "chat"}]}}
    message = refusal(twice)
    assert "'chat'" in message and "twice" in message


@pytest.mark.parametrize("name", ["ab", "a-b", "A_1", "--", "x" * 100])
def test_names_that_can_be(name: str) -> None:
    [found] = load({}, namespace(name=name)).channels.namespaces
    assert found.name == name


def test_every_option_of_a_namespace_can_be_set() -> None:
    allow = {
        f"allow_{what}_for_{whom}": True
        for what in ("subscribe", "publish", "presence", "history")
        for whom in ("client", "subscriber", "anonymous")
        if (what, whom) != ("subscribe", "subscriber")
    }
    options = {
        **KEPT,
        **allow,
        "history_meta_ttl": 60,
        "force_positioning": True,
        "allow_positioning": True,
        "force_recovery": True,
        "allow_recovery": True,
        "presence": True,
        "join_leave": True,
        "force_push_join_leave": True,
        "allowed_delta_types": ("fossil",),
        "delta_publish": True,
        "channel_regex": "[a-z]+",
    }
    [found] = load({}, namespace(**options)).channels.namespaces
    for name, value in options.items():
        assert getattr(found, name) == value


def test_options_that_are_not_named_keep_their_defaults() -> None:
    default = load({}, {}).channels.without_namespace
    named = {"allow_publish_for_client": True, "history_size": 10}
    changed = msgspec.structs.replace(default, **named)
    from_file = load({}, {"channels": {"without_namespace": named}})
    assert from_file.channels.without_namespace == changed
    text = '{"allow_publish_for_client": true, "history_size": 10}'
    environ = {"STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": text}
    assert load(environ, {}).channels.without_namespace == changed
    both = load(environ, {"channels": {"without_namespace": {"presence": False}}})
    assert both.channels.without_namespace == msgspec.structs.replace(
        changed, presence=False
    )


def test_history_can_be_switched_off() -> None:
    off = {"history_size": 0, "history_ttl": 0, "force_recovery": False}
    found = load({}, {"channels": {"without_namespace": off}}).channels
    assert found.without_namespace.history_size == 0
    assert found.without_namespace.presence, "which was not named"
    message = refusal({"channels": {"without_namespace": {"history_size": 0}}})
    for name in ("history_ttl", "force_recovery"):
        assert name in message


@pytest.mark.parametrize("pattern", ["a(?=b)", "(?!a)b", r"(a)\1", "(?<=a)b", "("])
def test_a_pattern_that_is_not_linear_is_refused(pattern: str) -> None:
    message = refusal(namespace(channel_regex=pattern))
    assert "channel_regex" in message and "RE2" in message
