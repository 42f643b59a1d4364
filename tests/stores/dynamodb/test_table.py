"""Making, checking and deleting the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.core.errors import StartupError, StoreError
from service.settings import DynamodbSettings
from service.stores.dynamodb import table
from tests.stores.dynamodb.support import SESSION

INFRA = Path(__file__).resolve().parents[3] / "infra"


@pytest.fixture(params=["ministack", "moto"])  # dynalite has no time to live
def emulator(request):
    return request.getfixturevalue(request.param)


async def test_a_table_is_made_checked_and_deleted(emulator, make_client):
    settings = emulator.settings()
    client = await make_client(settings)
    assert await table.check(client, settings) == ["it does not exist"]
    with pytest.raises(StartupError, match="steadwire tables create"):
        await table.verify(client, settings)
    assert await table.create(client, settings) is True
    assert await table.create(client, settings) is False
    assert await table.check(client, settings) == []
    await table.verify(client, settings)
    assert await table.delete(client) is True
    assert await table.delete(client) is False
    assert await table.check(client, settings) == ["it does not exist"]


async def test_provisioned_capacity_is_made_and_compared(emulator, make_client):
    settings = emulator.settings(capacity="provisioned", read_units=7, write_units=3)
    client = await make_client(settings)
    assert await table.create(client, settings)
    assert await table.check(client, settings) == []
    name = settings.table
    other = emulator.settings(table=name, capacity="provisioned", read_units=8)
    assert await table.check(client, other) == [
        "its ReadCapacityUnits is 7, not 8",
        "its WriteCapacityUnits is 3, not 5",
    ]
    (problem,) = await table.check(client, emulator.settings(table=name))
    assert problem == "its billing mode is PROVISIONED, not PAY_PER_REQUEST"


async def test_another_programs_table_is_refused(emulator, make_client, faults):
    settings = emulator.settings()
    client = await make_client(settings)
    boto = faults.connect(settings)
    boto.create_table(
        TableName=settings.table,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    with pytest.raises(StartupError, match="its keys are not the strings pk and sk"):
        await table.verify(client, settings)
    with pytest.raises(StoreError, match="its keys are not the strings pk and sk"):
        await table.create(client, settings)


async def test_nobody_there_is_said_at_the_start(make_client, emulator):
    settings = emulator.settings(endpoint="http://127.0.0.1:9", timeout=0.2)
    client = await make_client(settings)
    with pytest.raises(StartupError, match="EndpointConnectionError"):
        await table.verify(client, settings)


async def use(client):
    item = {"pk": {"S": "used"}, "sk": {"S": "used"}}
    await client.call("put_item", {"TableName": client.table, "Item": item})


async def test_a_process_with_leases_takes_an_empty_table_for_its_own(
    make_client, emulator
):
    """A template has made it, so nobody wrote whether its processes have leases."""
    settings = emulator.settings()
    client = await make_client(settings)
    await table.create(client, settings)
    others = emulator.settings(table=settings.table, leases=True)
    await table.verify(client, others)
    assert await table.check(client, others) == []
    with pytest.raises(StartupError, match="says false, and the table true"):
        await table.verify(client, settings)


async def test_a_process_that_differs_about_leases_does_not_start(
    make_client, emulator
):
    settings = emulator.settings()
    client = await make_client(settings)
    await table.create(client, settings)
    others = emulator.settings(table=settings.table, leases=True)
    await use(client)
    with pytest.raises(StartupError, match="says true, and the table false"):
        await table.verify(client, others)
    (problem,) = await table.check(client, others)
    assert "says true, and the table false" in problem
    await table.create(client, others)
    await table.verify(client, others)
    with pytest.raises(StartupError, match="says false, and the table true"):
        await table.verify(client, settings)
    await table.create(client, settings)
    await table.verify(client, settings)


def test_the_template_is_the_definition():
    text = (INFRA / "dynamodb" / "table.json").read_text()
    assert json.loads(text) == table.template(DynamodbSettings())


async def test_the_template_makes_such_a_table(ministack, make_client):
    settings = ministack.settings()
    client = await make_client(settings)
    formation = SESSION.client(
        "cloudformation",
        region_name=settings.region,
        endpoint_url=settings.endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    formation.create_stack(
        StackName=settings.table,
        TemplateBody=(INFRA / "dynamodb" / "table.json").read_text(),
        Parameters=[
            {"ParameterKey": "TableName", "ParameterValue": settings.table},
        ],
    )
    formation.get_waiter("stack_create_complete").wait(
        StackName=settings.table, WaiterConfig={"Delay": 1}
    )
    # No emulator's CloudFormation looks at TimeToLiveSpecification.
    assert await table.check(client, settings) == [
        "its time to live is off, not on ttl"
    ]
