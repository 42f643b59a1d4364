"""Permissions: every rule, for every user, with every kind of token.

On a real server and real sockets. The tables below are the documented decision order
(docs/tokens.md) as data: an outcome is an error's code, a close's code, or IN.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.harness.fixtures import server_with
from tests.harness.raw import Closed, RawClient
from tests.harness.server import Server
from tests.harness.tokens import BAD, connection, make, subscription
from tests.harness.tokens import settings as token_settings

IN = "in"

# By rule: a channel, and the users that may subscribe to it without a token.
RULES: dict[str, tuple[str, dict[str, object]]] = {
    # Private: nobody without a token, whatever the namespace allows.
    "private": ("$x", {"ann": 103, "bob": 103, "": 103}),
    "private, open namespace": ("$client:x", {"ann": 103, "bob": 103, "": 103}),
    # Public: as the namespace allows.
    "for clients": ("client:x", {"ann": IN, "bob": IN, "": 103}),
    "for anonymous": ("anonymous:x", {"ann": 103, "bob": 103, "": IN}),
    "for nobody": ("closed:x", {"ann": 103, "bob": 103, "": 103}),
    # User-limited: those that are named, though the namespace allows all.
    "one user": ("limited:x#ann", {"ann": IN, "bob": 103, "": 103}),
    "two users": ("limited:x#bob,ann", {"ann": IN, "bob": IN, "": 103}),
    "no user": ("limited:x#", {"ann": 103, "bob": 103, "": 103}),
    "an empty name": ("limited:x#,bob", {"ann": 103, "bob": IN, "": 103}),
    "part of a name": ("limited:x#annabel", {"ann": 103, "bob": 103, "": 103}),
    "the last part": ("limited:x#ann#bob", {"ann": 103, "bob": IN, "": 103}),
    "not limited": ("limited:x", {"ann": IN, "bob": IN, "": IN}),
    "not switched on": ("client:x#bob", {"ann": IN, "bob": IN, "": 103}),
    # A user's own: for nobody else, though the namespace allows all.
    "own, by the server": ("own:#ann", {"ann": 105, "bob": 103, "": 103}),
    "own, of nobody": ("own:#", {"ann": 103, "bob": 103, "": 103}),
    # Names that are not valid.
    "unknown namespace": ("nowhere:x", {"ann": 102, "bob": 102, "": 102}),
    "no ASCII": ("client:ключ", {"ann": 107, "bob": 107, "": 107}),
    "too long": ("x" * 256, {"ann": 107, "bob": 107, "": 107}),
}
# With a token, only the token decides; an invalid name stays invalid.
TOKENS: dict[str, object] = {
    "good": IN,
    "expired": 109,
    "tampered": 103,
    "wrong audience": 103,
    "alg none": 103,
    "HS for RS": 103,
    "RS for HS": 103,
    "another key": 103,
    "no token": 103,
    "of another user": "closed 3500",
    "of nobody": "closed 3500",
    "for another channel": "closed 3500",
    "for another client": "closed 3500",
    "a connection token": 103,
    "swapped on refresh": "closed 3500",
    "bad on refresh": 103,
}
CONNECT: dict[str, object] = {
    "good": IN,
    "anonymous": IN,
    "none": "closed 3501",
    "expired": 109,
    "tampered": "closed 3500",
    "wrong audience": "closed 3500",
    "alg none": "closed 3500",
    "HS for RS": "closed 3500",
    "RS for HS": "closed 3500",
    "another key": "closed 3500",
    "no token": "closed 3500",
    "a subscription token": "closed 3500",
}
REFRESH: dict[str, object] = {
    "good": IN,
    "of another user": "closed 3500",
    "of nobody": "closed 3500",
    **{kind: "closed 3500" for kind in BAD},
    "expired": "closed 3005",
    "a subscription token": "closed 3500",
}


def namespace(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "presence": True, **options}


NAMESPACES = [
    namespace("client", allow_subscribe_for_client=True),
    namespace("anonymous", allow_subscribe_for_anonymous=True),
    namespace("closed"),
    namespace(
        "limited",
        allow_subscribe_for_client=True,
        allow_subscribe_for_anonymous=True,
        allow_user_limited_channels=True,
    ),
    namespace(
        "own", allow_subscribe_for_client=True, allow_subscribe_for_anonymous=True
    ),
]


server = server_with(
    token_settings(
        STEADWIRE_CHANNELS_NAMESPACES=json.dumps(NAMESPACES),
        STEADWIRE_CLIENT_USER_PERSONAL_CHANNEL=json.dumps(
            {"enabled": True, "namespace": "own"}
        ),
    )
)


async def outcome(client: RawClient, **command: Any) -> object:
    """Send a command and return what came of it."""
    try:
        reply = await client.request(**command)
    except Closed as closed:
        return f"closed {closed.code}"
    return reply["error"]["code"] if "error" in reply else IN


async def enter(server: Server, user: str) -> tuple[RawClient, str]:
    client = await server.raw(connected=False)
    reply = await client.connect(token=connection(user))
    return client, reply["client"]


@pytest.mark.requirement("B88", "B90", "B105")
@pytest.mark.parametrize("kind", CONNECT)
async def test_connect(server: Server, kind: str) -> None:
    claims = {"sub": "ann"}
    tokens = {
        "good": connection("ann"),
        "anonymous": connection(""),
        "none": "",
        "a subscription token": subscription("ann", "client:x"),
    }
    token = BAD[kind](claims) if kind in BAD else tokens[kind]
    client = await server.raw(connected=False)
    assert await outcome(client, connect={"token": token}) == CONNECT[kind]
    if token:
        assert token not in server.output()


@pytest.mark.requirement("B68")
async def test_a_token_is_good_from_every_address(server: Server) -> None:
    token = connection("ann")
    here = await server.raw(connected=False)
    there = await server.raw(connected=False, source="127.0.0.2")
    assert await outcome(here, connect={"token": token}) == IN
    assert await outcome(there, connect={"token": token}) == IN
    assert await outcome(there, subscribe={"channel": "limited:#ann"}) == IN


@pytest.mark.requirement("L9", "B20", "B111")
@pytest.mark.parametrize("kind", REFRESH)
async def test_refresh(server: Server, kind: str) -> None:
    client, _ = await enter(server, "ann")
    claims = {"sub": "ann"}
    tokens = {
        "good": connection("ann"),
        "of another user": connection("bob"),
        "of nobody": connection(""),
        "a subscription token": subscription("ann", "client:x"),
    }
    token = BAD[kind](claims) if kind in BAD else tokens[kind]
    assert await outcome(client, refresh={"token": token}) == REFRESH[kind]


@pytest.mark.requirement("R38")
@pytest.mark.parametrize("user", ["ann", "bob", ""])
@pytest.mark.parametrize("rule", RULES)
async def test_subscribe_without_a_token(server: Server, rule: str, user: str) -> None:
    channel, expected = RULES[rule]
    client, _ = await enter(server, user)
    assert await outcome(client, subscribe={"channel": channel}) == expected[user]


@pytest.mark.requirement("B103")
@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("rule", RULES)
async def test_subscribe_with_a_token(server: Server, rule: str, kind: str) -> None:
    channel, without = RULES[rule]
    client, name = await enter(server, "ann")
    claims = {"sub": "ann", "channel": channel}
    tokens = {
        "good": subscription("ann", channel, client=name),
        "of another user": subscription("bob", channel),
        "of nobody": subscription("", channel),
        "for another channel": subscription("ann", "client:other"),
        "for another client": subscription("ann", channel, client="x"),
        "a connection token": connection("ann"),
        "swapped on refresh": subscription("ann", channel),
        "bad on refresh": subscription("ann", channel),
    }
    token = BAD[kind](claims) if kind in BAD else tokens[kind]
    result = await outcome(client, subscribe={"channel": channel, "token": token})
    if without["ann"] in (102, 105, 107):
        assert result == without["ann"]
        return
    if kind not in ("swapped on refresh", "bad on refresh"):
        assert result == TOKENS[kind]
        return
    assert result == IN
    swapped = kind == "swapped on refresh"
    token = subscription("bob", channel) if swapped else BAD["tampered"](claims)
    command = {"channel": channel, "token": token}
    assert await outcome(client, sub_refresh=command) == TOKENS[kind]


async def test_a_good_token_of_every_algorithm_there_is_a_key_for(
    server: Server,
) -> None:
    for algorithm in ("HS256", "RS256", "RS384", "RS512"):
        client = await server.raw(connected=False)
        token = make({"sub": "ann"}, algorithm=algorithm)
        assert await outcome(client, connect={"token": token}) == IN


@pytest.mark.requirement("B109")
async def test_each_decision_is_a_line_in_the_log(server: Server) -> None:
    # Complete, and nothing of any token.
    client, name = await enter(server, "logan")
    channel = "closed:logged"
    tokens = [
        connection("logan"),
        BAD["tampered"]({"sub": "logan", "channel": channel}),
    ]
    await outcome(client, refresh={"token": tokens[0]})
    await outcome(client, subscribe={"channel": channel, "token": tokens[1]})
    good = {"channel": channel, "token": subscription("logan", channel)}
    await outcome(client, subscribe=good)
    tokens.append(connection("mallory"))
    assert await outcome(client, refresh={"token": tokens[2]}) == "closed 3500"

    def lines() -> list[dict[str, Any]]:
        found = []
        for line in server.output().splitlines():
            if line.startswith("{") and name in line:
                entry = json.loads(line)
                if entry["event"] == "authentication":
                    found.append(entry)
        return found

    async with asyncio.timeout(10):
        while len(lines()) < 5:
            await asyncio.sleep(0.01)  # another thread writes them
    wanted = [
        ("connect", "admitted", 0, ""),
        ("refresh", "admitted", 0, ""),
        ("subscribe", "refused", 103, "the signature does not match"),
        ("subscribe", "admitted", 0, ""),
        ("refresh", "refused", 3500, "it is of another user"),
    ]
    for line, (about, result, code, reason) in zip(lines(), wanted, strict=True):
        assert (line["about"], line["outcome"]) == (about, result)
        assert (line["code"], line["reason"]) == (code, reason)
        assert (line["user"], line["address"]) == ("logan", "127.0.0.1")
    for token in tokens:
        for part in token.split("."):
            assert part not in server.output()


# --- publish, history, presence: who, by which option, with or without a subscription

WHO = ("client", "subscriber", "anonymous")


reading = server_with(
    token_settings(
        STEADWIRE_CHANNELS_NAMESPACES=json.dumps(
            [
                namespace(
                    f"{what}-{who}",
                    history_size=9,
                    history_ttl=60,
                    **{f"allow_{what}_for_{who}": True},
                )
                for what in ("publish", "history", "presence")
                for who in WHO
            ]
        )
    )
)


# (who is asked for by the option, who asks, subscribed by a token) → outcome
READING: dict[tuple[str, str, bool], object] = {
    ("client", "ann", False): IN,
    ("client", "ann", True): IN,
    ("client", "", False): 103,
    ("client", "", True): 103,
    ("subscriber", "ann", False): 103,
    ("subscriber", "ann", True): IN,
    ("subscriber", "", False): 103,
    ("subscriber", "", True): IN,
    ("anonymous", "ann", False): 103,
    ("anonymous", "ann", True): 103,
    ("anonymous", "", False): IN,
    ("anonymous", "", True): IN,
}


@pytest.mark.parametrize("what", ["publish", "history", "presence"])
@pytest.mark.parametrize(("option", "user", "subscribed"), READING)
async def test_what_else_may_be_done(
    reading: Server, what: str, option: str, user: str, subscribed: bool
) -> None:
    channel = f"{what}-{option}:x"
    client, _ = await enter(reading, user)
    if subscribed:
        await client.subscribe(channel, token=subscription(user, channel))
    expected = READING[option, user, subscribed]
    extra = {"data": 1} if what == "publish" else {}
    assert await outcome(client, **{what: {"channel": channel, **extra}}) == expected
    # A token lets its client subscribe, and nothing else.
    others = [each for each in ("publish", "history", "presence") if each != what]
    for other in others:
        extra = {"data": 1} if other == "publish" else {}
        command = {"channel": channel, **extra}
        assert await outcome(client, **{other: command}) == 103
    if what == "presence":
        stats = await outcome(client, presence_stats={"channel": channel})
        assert stats == expected


async def test_everything_is_allowed_to_everybody_where_it_is_insecure(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings = token_settings(
        STEADWIRE_CLIENT_INSECURE="true",
        STEADWIRE_CHANNELS_NAMESPACES=json.dumps(NAMESPACES),
    )
    server = Server(tmp_path_factory.mktemp("server"), settings).start_blocking()
    try:
        client = await server.raw()
        for channel in ("closed:x", "client:x", "limited:x#ann"):
            assert await outcome(client, subscribe={"channel": channel}) == IN
        # But for what needs a token, and a bad token is bad here too.
        assert await outcome(client, subscribe={"channel": "$x"}) == 103
        token = BAD["tampered"]({"sub": "", "channel": "closed:y"})
        command = {"channel": "closed:y", "token": token}
        assert await outcome(client, subscribe=command) == 103
        other = await server.raw(connected=False)
        assert await outcome(other, connect={"token": token}) == "closed 3500"
    finally:
        server.close()


@pytest.mark.requirement("B89", "B91")
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ({"refresh": {}}, "closed 3500"),
        ({"refresh": {"token": None}}, "closed 3500"),
        ({"refresh": {"token": 7}}, "closed 3501"),
        ({"refresh": {"token": ["x"]}}, "closed 3501"),
        ({"refresh": {"token": "x" * 20_000}}, "closed 3500"),
        ({"sub_refresh": {}}, 103),
        ({"sub_refresh": {"channel": 7, "token": "t"}}, "closed 3501"),
        ({"sub_refresh": {"channel": "closed:x", "token": {}}}, "closed 3501"),
        ({"sub_refresh": {"channel": "closed:x", "token": "t"}}, 103),
        ({"sub_refresh": {"channel": "closed:x" * 99, "token": "t"}}, 103),
        ({"subscribe": {"channel": "closed:x", "token": 7}}, "closed 3501"),
        ({"subscribe": {"channel": "closed:x", "token": ".."}}, 103),
        ({"connect": {"token": connection("ann")}}, "closed 3501"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else str(value),
)
async def test_garbage(server: Server, command: dict[str, Any], expected: Any) -> None:
    client, _ = await enter(server, "ann")
    other, _ = await enter(server, "other")
    assert await outcome(client, **command) == expected
    assert await outcome(other, unsubscribe={"channel": "x"}) == IN


async def test_nothing_before_connect(server: Server) -> None:
    for method in ("refresh", "sub_refresh"):
        client = await server.raw(connected=False)
        command = {method: {"token": connection("ann")}}
        assert await outcome(client, **command) == "closed 3501"
