"""Who may do what in which channel: the tables of `service.auth.permissions`."""

from __future__ import annotations

from typing import Any

import pytest
import structlog.testing

from service.auth.permissions import ChannelRules, Decider, Permissions
from service.core.errors import ReplyError
from service.core.model import Override, UserId
from service.settings import (
    ChannelOptions,
    ChannelSettings,
    Namespace,
    PersonalChannel,
)

ANN, NOBODY = UserId("ann"), UserId("")
NO_KEY = "no key verifies tokens: set one in token or subscription_token"
ALL_USERS = [ANN, NOBODY]


class Told:
    """Permissions of namespace ``ns`` and of channels without, and what they tell."""

    def __init__(
        self,
        *,
        insecure: bool = False,
        personal: PersonalChannel | None = None,
        without: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.refusals: list[tuple[str, str, str]] = []
        self.permissions = Permissions(
            ChannelSettings(
                without_namespace=ChannelOptions(**(without or {})),
                namespaces=(Namespace(name="ns", **options), Namespace(name="other")),
            ),
            insecure=insecure,
            personal=personal or PersonalChannel(),
            on_refusal=lambda *refusal: self.refusals.append(refusal),
        )

    @property
    def rules(self) -> ChannelRules:
        return self.permissions.rules("ns:x")

    def subscribe(
        self,
        channel: str = "ns:x",
        user: UserId = ANN,
        *,
        token: bool = False,
        verified: bool = False,
        hook: bool = False,
    ) -> str:
        """Return who still decides, or the code of the refusal."""
        try:
            return self.permissions.may_subscribe(
                self.permissions.rules(channel),
                channel,
                user,
                token=token,
                verified=verified,
                hook=hook,
            ).name
        except ReplyError as refused:
            return str(refused.error.code)

    def may(self, what: str, user: UserId, *, subscribed: bool) -> int:
        """Return 0, or the code of the refusal."""
        ask = {
            "publish": self.permissions.may_publish,
            "history": self.permissions.may_read_history,
            "presence": self.permissions.may_see_presence,
        }[what]
        try:
            ask(self.rules, user, subscribed=subscribed)
        except ReplyError as refused:
            return refused.error.code
        return 0


def code_of(permissions: Permissions, channel: str) -> int:
    with pytest.raises(ReplyError) as refused:
        permissions.rules(channel)
    return refused.value.error.code


# Names.


@pytest.mark.parametrize(
    ("channel", "name"),
    [
        ("x", ""),
        ("$x", ""),
        ("x#ann", ""),
        ("ns:", "ns"),
        ("ns:x", "ns"),
        ("$ns:x", "ns"),
        ("ns:x:y", "ns"),
        ("other:x", "other"),
        ("x" * 255, ""),
    ],
)
def test_the_namespace_of_a_channel(channel, name):
    told = Told()
    assert told.permissions.rules(channel).name == name
    assert told.refusals == []


@pytest.mark.parametrize("channel", ["", "x" * 256, "bücher", "ns:ü"])
def test_names_that_are_no_channel_s(channel):
    told = Told()
    assert code_of(told.permissions, channel) == 107
    assert told.refusals == []


def test_an_unknown_namespace_is_told():
    told = Told()
    assert code_of(told.permissions, "xx:y") == 102
    assert told.refusals == [
        ("namespace", "xx:y", "add its namespace to channels.namespaces")
    ]


def test_a_pattern_is_matched_against_what_follows_the_namespace():
    told = Told(channel_regex="[0-9]+", without={"channel_regex": "[a-z]+"})
    rules = told.permissions.rules
    assert rules("ns:42").name == rules("$ns:42").name == "ns"
    assert rules("abc").name == rules("$abc").name == ""
    assert told.refusals == []
    assert code_of(told.permissions, "ns:4x") == 107
    assert code_of(told.permissions, "abc1") == 107
    text = "its name does not match channel_regex in "
    assert told.refusals == [
        ("channel_regex", "ns:4x", f"{text}channels.namespaces 'ns'"),
        ("channel_regex", "abc1", f"{text}channels.without_namespace"),
    ]


def test_rules_know_what_the_store_keeps():
    told = Told(history_size=3, history_ttl=4.0, history_meta_ttl=5.0)
    history = told.rules.history
    assert (history.size, history.ttl, history.meta_ttl) == (3, 4.0, 5.0)


def test_a_subscription_s_own_options():
    rules = Told(channel_regex="x").rules
    assert rules.changed(Override()) is rules
    changed = rules.changed(Override(presence=True))
    assert (changed.options.presence, rules.options.presence) == (True, False)
    assert changed.name == "ns"
    assert changed.matches("x") and not changed.matches("y")


# Subscribing: row by row of the table.


@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("user", ALL_USERS)
def test_rows_1_to_3_channels_of_tokens_and_tokens(user, insecure, hook):
    told = Told(insecure=insecure, allow_subscribe_for_client=True)
    # 1: without a token, or without a key.
    needs = "a channel that begins with $ needs a subscription token"
    assert told.subscribe("$ns:x", user, verified=True, hook=hook) == "103"
    assert told.subscribe("$ns:x", user, hook=hook) == "103"
    assert told.subscribe("$ns:x", user, token=True, hook=hook) == "103"
    assert told.refusals == [
        ("subscribe", "$ns:x", needs),
        ("subscribe", "$ns:x", NO_KEY),
        ("subscribe", "$ns:x", NO_KEY),
    ]
    told.refusals.clear()
    # 2: a token that can be verified decides, in every channel.
    for channel in ("$ns:x", "ns:x", "x"):
        found = told.subscribe(channel, user, token=True, verified=True, hook=hook)
        assert found == "TOKEN"
    assert told.refusals == []
    # 3: without a key, a token is no use; a hook may look at it.
    found = told.subscribe("ns:x", user, token=True, hook=hook)
    assert found == ("HOOK" if hook else "NOBODY" if insecure else "103")
    refused = found == "103"
    assert told.refusals == ([("subscribe", "ns:x", NO_KEY)] if refused else [])


@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize(
    ("channel", "user", "named"),
    [
        ("ns:x#ann", "ann", True),
        ("ns:x#bob,ann", "ann", True),
        ("ns:x#bob,ann,cy", "ann", True),
        ("ns:x#bob#ann", "ann", True),
        ("ns:x#bob", "ann", False),
        ("ns:x#ann#bob", "ann", False),
        ("ns:x#anna", "ann", False),
        ("ns:x#", "ann", False),
        ("ns:x#", "", False),
        ("ns:x#,ann", "", False),
    ],
)
def test_rows_4_and_5_user_limited_channels(channel, user, named, insecure, hook):
    # Neither an option nor a hook for ordinary channels opens them.
    told = Told(
        insecure=insecure,
        allow_user_limited_channels=True,
        allow_subscribe_for_client=True,
        allow_subscribe_for_anonymous=True,
    )
    allowed = named or insecure
    found = told.subscribe(channel, UserId(user), hook=hook)
    assert found == ("NOBODY" if allowed else "103")
    text = "the channel's name does not name the user"
    assert told.refusals == ([] if allowed else [("subscribe", channel, text)])


def test_without_the_option_the_sign_means_nothing():
    told = Told(allow_subscribe_for_client=True)
    assert told.subscribe("ns:x#bob") == "NOBODY"
    assert told.subscribe("ns:x#bob", hook=True) == "HOOK"
    told = Told()
    assert told.subscribe("ns:x#ann") == "103"


@pytest.mark.parametrize("user", ALL_USERS)
def test_row_6_a_hook_alone(user):
    told = Told(allow_subscribe_for_client=True, insecure=True)
    assert told.subscribe("ns:x", user, hook=True) == "HOOK"
    assert told.subscribe("ns:x", user, verified=True, hook=True) == "HOOK"
    assert told.refusals == []


@pytest.mark.parametrize("verified", [False, True])
@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("anonymous", [False, True])
@pytest.mark.parametrize("client", [False, True])
def test_rows_7_to_9_options(client, anonymous, insecure, verified):
    told = Told(
        insecure=insecure,
        allow_subscribe_for_client=client,
        allow_subscribe_for_anonymous=anonymous,
    )
    found = told.subscribe("ns:x", ANN, verified=verified)
    assert found == ("NOBODY" if client or insecure else "103")
    found = told.subscribe("ns:x", NOBODY, verified=verified)
    assert found == ("NOBODY" if anonymous or insecure else "103")
    where = "channels.namespaces 'ns'"
    text = f"set allow_subscribe_for_client in {where}, or give a token"
    wanted = [] if client or insecure else [("subscribe", "ns:x", text)]
    if not (anonymous or insecure):
        text = f"set allow_subscribe_for_anonymous in {where}"
        wanted.append(("subscribe", "ns:x", text))
    assert told.refusals == wanted


def test_nobody_needs_to_be_told():
    permissions = Permissions(ChannelSettings(), insecure=False)
    with pytest.raises(ReplyError) as refused:
        permissions.may_subscribe(
            permissions.rules("x"),
            "x",
            ANN,
            token=False,
            verified=False,
            hook=False,
        )
    assert refused.value.error.code == 103
    assert permissions.personal_channel(ANN) is None
    assert [each.name for each in Decider] == ["NOBODY", "TOKEN", "HOOK"]


# Personal channels.


@pytest.mark.parametrize(("namespace", "prefix"), [("", "#"), ("ns", "ns:#")])
def test_a_personal_channel_is_its_user_s_alone(namespace, prefix):
    told = Told(
        personal=PersonalChannel(enabled=True, namespace=namespace),
        allow_subscribe_for_client=True,
        without={"allow_subscribe_for_client": True},
    )
    assert told.permissions.personal_channel(ANN) == f"{prefix}ann"
    assert told.subscribe(f"{prefix}ann") == "NOBODY"
    assert told.subscribe(f"{prefix}bob") == "103"
    assert told.subscribe(f"{prefix}bob", hook=True) == "103"
    # The sign elsewhere means nothing here.
    assert told.subscribe("ns:x#bob") == "NOBODY"
    assert told.subscribe("x#bob") == "NOBODY"
    assert told.permissions.personal_channel(NOBODY) is None


@pytest.mark.parametrize("user", ["a#b", "a,b", "#", ","])
def test_a_user_that_would_name_others_gets_no_personal_channel(user):
    told = Told(personal=PersonalChannel(enabled=True))
    with pytest.raises(ReplyError) as refused:
        told.permissions.personal_channel(UserId(user))
    assert refused.value.error.code == 107


@pytest.mark.parametrize("namespace", ["", "ns"])
def test_without_the_setting_there_are_no_personal_channels(namespace):
    told = Told(personal=PersonalChannel(enabled=False, namespace=namespace))
    assert told.permissions.personal_channel(ANN) is None
    assert told.permissions.personal_channel(UserId("a#b")) is None
    told = Told(without={"allow_subscribe_for_client": True})
    assert told.subscribe("#bob") == "NOBODY"


# Publishing, history and presence.

ALL = {"history_size": 1, "history_ttl": 1.0, "presence": True}


@pytest.mark.parametrize("subscribed", [False, True])
@pytest.mark.parametrize("user", ALL_USERS)
@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("whom", ["client", "anonymous", "subscriber", ""])
@pytest.mark.parametrize("what", ["publish", "history", "presence"])
def test_each_option_allows_what_it_names(what, whom, insecure, user, subscribed):
    options = {f"allow_{what}_for_{whom}": True} if whom else {}
    told = Told(insecure=insecure, **ALL, **options)
    allowed = (
        insecure
        or (whom == "client" and user != "")
        or (whom == "anonymous" and user == "")
        or (whom == "subscriber" and subscribed)
    )
    assert told.may(what, user, subscribed=subscribed) == (0 if allowed else 103)
    lacks = f"allow_{what}_for_{'client' if user else 'anonymous'}"
    text = f"set {lacks} in channels.namespaces 'ns'"
    assert told.refusals == ([] if allowed else [(what, "", text)])


@pytest.mark.parametrize("what", ["history", "presence"])
def test_what_a_namespace_does_not_have_is_not_available(what):
    told = Told(insecure=True)
    assert told.may(what, ANN, subscribed=True) == 108
    assert told.may("publish", ANN, subscribed=False) == 0
    assert told.refusals == []


# What a new subscription gets.

HISTORY = {"history_size": 1, "history_ttl": 1.0}


@pytest.mark.parametrize(
    ("options", "recoverable", "positioned"),
    [
        # Of each: without having asked, and having asked.
        ({}, (False, False), (False, False)),
        ({"force_recovery": True}, (True, True), (True, True)),
        ({"force_positioning": True}, (False, False), (True, True)),
        ({"allow_recovery": True}, (False, True), (False, False)),
        ({"allow_positioning": True}, (False, False), (False, True)),
        ({"allow_history_for_client": True}, (False, True), (False, True)),
        ({"allow_history_for_subscriber": True}, (False, True), (False, True)),
        ({"allow_history_for_anonymous": True}, (False, False), (False, False)),
    ],
)
def test_recovery_and_positions(options, recoverable, positioned):
    told = Told(**HISTORY, **options)
    for asked in (False, True):
        found = told.permissions.is_recoverable(told.rules, ANN, asked=asked)
        assert found is recoverable[asked]
        found = told.permissions.is_positioned(told.rules, ANN, asked=asked)
        assert found is positioned[asked]


def test_an_anonymous_one_recovers_what_it_may_read():
    told = Told(**HISTORY, allow_history_for_anonymous=True)
    assert told.permissions.is_recoverable(told.rules, NOBODY, asked=True)
    assert told.permissions.is_positioned(told.rules, NOBODY, asked=True)
    assert not told.permissions.is_recoverable(told.rules, NOBODY, asked=False)


def test_without_history_nothing_is_recovered():
    told = Told(
        force_recovery=True,
        force_positioning=True,
        allow_recovery=True,
        allow_positioning=True,
        insecure=True,
    )
    assert told.permissions.is_recoverable(told.rules, ANN, asked=True) is False
    assert told.permissions.is_positioned(told.rules, ANN, asked=True) is False


@pytest.mark.parametrize(
    ("options", "user", "hears"),
    [
        # Without having asked, and having asked.
        ({"allow_presence_for_subscriber": True}, ANN, (False, False)),
        ({"force_push_join_leave": True}, ANN, (False, False)),
        ({"join_leave": True}, ANN, (False, False)),
        ({"join_leave": True, "force_push_join_leave": True}, NOBODY, (True, True)),
        (
            {"join_leave": True, "allow_presence_for_subscriber": True},
            NOBODY,
            (False, True),
        ),
        ({"join_leave": True, "allow_presence_for_client": True}, ANN, (False, True)),
        (
            {"join_leave": True, "allow_presence_for_client": True},
            NOBODY,
            (False, False),
        ),
        (
            {"join_leave": True, "allow_presence_for_anonymous": True},
            NOBODY,
            (False, True),
        ),
    ],
)
def test_joins_and_leaves(options, user, hears):
    told = Told(**options)
    for asked in (False, True):
        found = told.permissions.hears_joins(told.rules, user, asked=asked)
        assert found is hears[asked]


# The log.


def test_the_log_says_once_a_namespace_why_clients_recover_nothing():
    told = Told(without=HISTORY)
    default = told.permissions.rules("x")
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            told.permissions.recovery_refused(told.rules)
            told.permissions.recovery_refused(default)
    text = "clients ask to recover messages, and "
    assert lines == [
        {
            "event": f"{text}channels.namespaces 'ns' has no history",
            "remedy": "set history_size and history_ttl",
            "log_level": "warning",
        },
        {
            "event": f"{text}channels.without_namespace does not allow it",
            "remedy": "set allow_recovery, force_recovery or allow_history_for_client",
            "log_level": "warning",
        },
    ]
