"""One call and its repeats: deadlines, tokens, the breaker.  R14, R15"""

from __future__ import annotations

import asyncio
import threading

import psutil
import pytest

from service.core.errors import StoreBusy, StoreError, StoreUnavailable
from service.stores.dynamodb import table
from service.stores.dynamodb.errors import (
    ConditionFailed,
    OutcomeUnknown,
    Throttled,
    TransactionCancelled,
)
from tests.stores.dynamodb.support import conflict, lost, refusal, timed_out

KEY = {"pk": {"S": "a"}, "sk": {"S": "b"}}


@pytest.fixture
async def client(ministack, make_client):
    settings = ministack.settings()
    client = await make_client(settings)
    await table.create(client, settings)
    return client


def put(client, condition="", **attributes):
    item = {**KEY, **{name: {"N": str(n)} for name, n in attributes.items()}}
    request = {"TableName": client.table, "Item": item}
    if condition:
        request["ConditionExpression"] = condition
        request["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
    return request


def add(client):
    """Return a transaction that is not the same when it is done twice."""
    update = {
        "TableName": client.table,
        "Key": KEY,
        "UpdateExpression": "ADD n :one",
        "ExpressionAttributeValues": {":one": {"N": "1"}},
    }
    return {"TransactItems": [{"Update": update}]}


async def stored(client):
    answer = await client.call(
        "get_item", {"TableName": client.table, "Key": KEY, "ConsistentRead": True}
    )
    item = answer.get("Item", {})
    return {name: int(v["N"]) for name, v in item.items() if "N" in v}


def times(count, fault):
    """Return a fault that happens *count* times, to anything but reads."""
    left = [count]

    def once(operation):
        if operation in ("GetItem", "DescribeTable") or not left[0]:
            return None
        left[0] -= 1
        return fault(operation) if callable(fault) else fault

    return once


async def test_a_condition_that_fails_gives_the_item(client):
    await client.call("put_item", put(client, n=1))
    with pytest.raises(ConditionFailed) as caught:
        await client.call("put_item", put(client, "attribute_not_exists(pk)", n=2))
    assert caught.value.item == {**KEY, "n": {"N": "1"}}
    assert caught.value.repeated is False
    assert await stored(client) == {"n": 1}


async def test_a_cancelled_transaction_gives_each_reason(client):
    await client.call("put_item", put(client, n=1))
    other = put(client, n=5)
    other["Item"] = {**other["Item"], "sk": {"S": "other"}}
    second = put(client, "attribute_not_exists(pk)", n=2)
    with pytest.raises(TransactionCancelled) as caught:
        await client.call(
            "transact_write_items", {"TransactItems": [{"Put": other}, {"Put": second}]}
        )
    first, last = caught.value.reasons
    assert (first.code, first.item) == ("None", None)
    assert last.item == {**KEY, "n": {"N": "1"}}
    assert caught.value.failed(1) and not caught.value.failed(0)


@pytest.mark.parametrize("fault", [lost, timed_out])
async def test_a_transaction_whose_answer_was_lost_is_done_once(client, faults, fault):
    faults.after.append(times(1, fault))
    await client.call("transact_write_items", add(client))
    assert await stored(client) == {"n": 1}
    tokens = {
        r["ClientRequestToken"] for o, r in faults.requests if "ClientRequestToken" in r
    }
    assert faults.count("TransactWriteItems") == 2
    assert len(tokens) == 1


async def test_a_condition_after_a_lost_answer_says_that_it_may_be_our_own(
    client, faults
):
    faults.after.append(times(1, lost))
    with pytest.raises(ConditionFailed) as caught:
        await client.call("put_item", put(client, "attribute_not_exists(pk)", n=1))
    assert caught.value.repeated is True


async def test_conflicts_are_repeated_with_a_token_of_their_own(client, faults):
    faults.before.append(times(3, lambda operation: conflict(1)))
    await client.call("transact_write_items", add(client))
    assert await stored(client) == {"n": 1}
    tokens = [
        r["ClientRequestToken"] for o, r in faults.requests if "ClientRequestToken" in r
    ]
    assert len(tokens) == len(set(tokens)) == 4
    assert client.breaker.closed


async def test_throttling_is_repeated_and_never_opens_the_breaker(client, faults):
    throttle = times(5, lambda _: refusal("ProvisionedThroughputExceededException"))
    faults.before.append(throttle)
    await client.call("put_item", put(client, n=1))
    assert await stored(client) == {"n": 1}
    assert faults.count("PutItem") == 6
    assert client.breaker.openings == 0


async def test_what_is_throttled_to_the_end_is_busy(client, faults, store_clock):
    faults.before.append(times(10**9, lambda _: refusal("ThrottlingException")))
    deadline = store_clock.now() + 0.3
    with pytest.raises(Throttled):
        await client.call("put_item", put(client, n=1), deadline=deadline)
    assert await stored(client) == {}
    assert client.breaker.openings == 0 and client.fault() is None


@pytest.mark.requirement("R14", "B32")
async def test_an_internal_error_is_repeated_after_half_a_second(client, faults):
    faults.before.append(times(1, lambda _: refusal("InternalServerError", 500)))
    began = asyncio.get_running_loop().time()
    await client.call("put_item", put(client, n=1))
    assert asyncio.get_running_loop().time() - began >= 0.5  # R14
    assert await stored(client) == {"n": 1}


async def test_without_an_answer_the_outcome_is_unknown(client, faults, store_clock):
    faults.after.append(times(10**9, timed_out))
    deadline = store_clock.now() + 0.3
    with pytest.raises(OutcomeUnknown):
        await client.call("put_item", put(client, n=1), deadline=deadline)
    assert await stored(client) == {"n": 1}


async def test_a_call_ends_by_its_deadline_whatever_its_thread_does(
    client, faults, store_clock
):
    release = threading.Event()
    faults.before.append(times(1, lambda _: release.wait(30) and None))
    with pytest.raises(OutcomeUnknown):
        await client.call(
            "put_item", put(client, n=1), deadline=store_clock.now() + 0.1
        )
    release.set()


async def test_a_request_that_makes_no_sense_is_not_repeated(client, faults):
    request = put(client, n=1) | {"Item": {"pk": {"S": "it has no sk"}}}
    with pytest.raises(StoreError) as caught:
        await client.call("put_item", request)
    assert not isinstance(caught.value, (StoreUnavailable, StoreBusy))
    assert faults.count("PutItem") == 1
    assert client.breaker.closed
    with pytest.raises(StoreError):  # botocore does not even send it
        await client.call("put_item", {"TableName": 5})
    assert faults.count("PutItem") == 1


async def test_three_refusals_open_the_breaker_and_a_probe_closes_it(client, faults):
    denied = times(3, lambda _: refusal("AccessDeniedException"))
    faults.before.append(denied)
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="AccessDeniedException"):
            await client.call("put_item", put(client, n=1))
    assert client.breaker.state == "open"
    assert client.fault() == "DynamoDB: AccessDeniedException"
    before = len(faults.calls)
    with pytest.raises(StoreUnavailable):  # at once, and nothing is sent
        await client.call("put_item", put(client, n=1))
    assert len(faults.calls) == before
    while not client.breaker.closed:
        await asyncio.sleep(0.05)
    assert client.fault() is None
    await client.call("put_item", put(client, n=1))
    assert await stored(client) == {"n": 1}


def sockets(port):
    """Return how many connections this process has to a port."""
    return sum(
        connection.raddr and connection.raddr.port == port
        for connection in psutil.Process().net_connections("tcp")
        if connection.status == psutil.CONN_ESTABLISHED
    )


@pytest.mark.requirement("R16")
async def test_the_idle_connections_are_dropped_while_it_is_open(
    ministack, make_client, faults
):
    settings = ministack.settings()
    client = await make_client(settings)
    await table.create(client, settings)
    down = [True]
    faults.before.append(
        lambda operation: refusal("InternalServerError", 500) if down[0] else None
    )
    calls = [client.call("put_item", put(client, n=n)) for n in range(3)]
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, OutcomeUnknown)
    assert client.breaker.state != "closed"
    before = sockets(ministack.port)
    assert before >= 1
    # R16: a second after the opening. Probes meanwhile fail before they are sent.
    async with asyncio.timeout(10.0):
        while sockets(ministack.port) >= before:
            assert not client.breaker.closed
            await asyncio.sleep(0.05)  # between two looks
    down[0] = False
    while not client.breaker.closed:
        await asyncio.sleep(0.05)
    await client.call("put_item", put(client, n=7))
    assert await stored(client) == {"n": 7}


class Gone(BaseException):
    """Whatever may end a task that is not an `Exception`."""


@pytest.mark.requirement("R15")
@pytest.mark.parametrize("error", [Gone, asyncio.CancelledError, ValueError])
async def test_a_probe_that_dies_does_not_leave_it_half_open(client, faults, error):
    faults.before.append(times(3, lambda _: refusal("AccessDeniedException")))
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await client.call("put_item", put(client, n=1))
    probes = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)

    def dying(operation):
        if operation == "GetItem" and not probes:
            probes.append(client.breaker.state)
            raise error

    faults.before.append(dying)
    async with asyncio.timeout(10.0):
        while not client.breaker.closed:
            await asyncio.sleep(0.05)
    assert probes == ["half-open"]
    await client.call("put_item", put(client, n=1))


async def test_more_calls_than_may_wait_are_refused(ministack, make_client, faults):
    settings = ministack.settings(connections=1)
    client = await make_client(settings)
    await table.create(client, settings)
    release = threading.Event()
    faults.before.append(times(1, lambda _: release.wait(30) and None))
    calls = [
        asyncio.ensure_future(client.call("put_item", put(client, n=n)))
        for n in range(70)
    ]
    await asyncio.sleep(0)
    release.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [o for o in outcomes if isinstance(o, StoreBusy)]
    assert len(refused) == 6
    assert faults.count("PutItem") == 64
