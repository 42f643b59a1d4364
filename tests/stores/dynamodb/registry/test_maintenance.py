"""Maintenance of the registry: dead nodes, orphans, the recount."""

from __future__ import annotations

import asyncio
import threading

import pytest
from botocore.exceptions import ClientError
from structlog.testing import capture_logs

from service.stores.dynamodb.registry.maintenance import Maintenance
from service.stores.dynamodb.registry.records import (
    GATEWAY_NODES,
    gateway_node,
    owner_key,
)
from tests.stores.dynamodb.mishaps import Death
from tests.stores.dynamodb.registry.fleet import (
    Process,
    admit,
    nothing,
    present,
    subscribe,
)
from tests.stores.dynamodb.support import Faults, client_for


# Not moto: it takes back what others did while one of two transactions is cancelled.
@pytest.mark.parametrize("emulator", ["ministack"], indirect=True)
async def test_any_process_reaps_dead_nodes(make_fleet, clock):
    fleet = await make_fleet()
    dead, one, two = [await fleet.process() for _ in range(3)]
    for client in ("a", "b", "c"):
        await admit(dead, "u", client)
        await subscribe(dead, client, "news")
    await admit(dead, "v", "d")
    clock.advance(1)
    await admit(one, "u", "e")  # takes the place of one of the dead
    await subscribe(one, "e", "news")
    clock.advance(38.9)
    await asyncio.gather(one.heartbeat(), two.heartbeat())
    await one.maintenance.reap()
    assert len(fleet.check().records) == 4  # it was not late when it was looked at
    clock.advance(1)
    await asyncio.gather(one.heartbeat(), two.heartbeat())
    marked = {node.name for node in await two.cluster.nodes() if node.dead}
    assert marked == {dead.nodes.name}
    assert await present(two, "news") == [("e", "u")]
    reaped = await asyncio.gather(*[p.maintenance.reap() for p in (one, two, one)])
    assert sum(reaped) == 3
    found = fleet.check()
    assert list(found.records) == ["e"]
    assert sorted(found.rest) == [
        (f"N#{one.nodes.name}", "S#e#news"),
        ("S#news", "e"),
    ]
    # Its row stays for an hour, in case something of it arrives late.
    clock.advance(3601)
    await one.heartbeat()
    await one.maintenance.reap()
    assert [i["pk"]["S"] for i in fleet.items()].count("NODES") == 2


async def test_an_admission_that_arrives_after_its_leave_is_removed(make_fleet, clock):
    fleet = await make_fleet()
    faults = Faults()
    one, other = await fleet.process(faults), await fleet.process()
    await admit(one, "u", "a")
    (late,) = [r for name, r in faults.requests if name == "TransactWriteItems"]
    await one.leave("a")
    await admit(other, "v", "b")
    del late["ClientRequestToken"]
    with pytest.raises(ClientError):  # another one has written the item meanwhile
        fleet.boto.transact_write_items(**late)
    fleet.write("delete_item", Key=owner_key("U#u"))  # as after an hour
    fleet.boto.transact_write_items(**late)
    assert await one.maintenance.drop_orphans() == 0
    assert sorted(fleet.check().records) == ["a", "b"]  # it may be under way
    clock.advance(16)
    assert await other.maintenance.drop_orphans() == 0
    assert await one.maintenance.drop_orphans() == 1
    assert list(fleet.check().records) == ["b"]


async def test_a_recount_reports_what_another_program_wrote(make_fleet):
    fleet = await make_fleet()
    one, two = await fleet.process(), await fleet.process()
    for number in range(6):
        await admit((one, two)[number % 2], f"u{number}", f"c{number}")
    assert await one.maintenance.recount() == 0
    found = fleet.check()
    record = found.records["c0"]
    shard = int(record["shard"]["N"])
    others = [other for other in +found.counts if other != shard]
    # A record is deleted, a count overwritten.
    fleet.write("delete_item", Key={"pk": record["pk"], "sk": record["sk"]})
    written = {
        "pk": {"S": f"G#{others[0]}"},
        "sk": {"S": "COUNT"},
        "n": {"N": "17"},
        "ver": {"N": "1"},
    }
    fleet.write("put_item", Item=written)
    before = fleet.contents()
    with capture_logs() as logs:
        assert await two.maintenance.recount() == 2
    (line,) = logs
    surplus = sum(before.counts.values()) - len(before.records)
    assert (line["log_level"], line["shards"], line["surplus"]) == ("error", 2, surplus)
    assert fleet.contents() == before  # nothing was repaired


async def test_a_recount_includes_the_connections_of_the_gateway(make_fleet):
    fleet = await make_fleet()
    one = await fleet.process()
    await admit(one, "u", "a")
    nodes = set()
    for number in range(8):
        client = f"c{number}="
        nodes.add(gateway_node(client))
        await one.connections.admit(f"U#v{number}", client, gateway_node(client))
    assert len(nodes) > 1
    with capture_logs():
        assert await one.maintenance.recount() > 0  # as if there were no gateway
    client = client_for(fleet.settings, fleet.clock)
    await client.start()
    knowing = Maintenance(client, one, fleet.clock, 40.0, pseudo_nodes=GATEWAY_NODES)
    assert await knowing.recount() == 0
    await client.close()


async def test_a_claim_whose_admission_has_died_counts_nowhere(make_fleet):
    fleet = await make_fleet()
    faults = Faults()
    one, two = await fleet.process(faults), await fleet.process()
    owner, node = "U#u", gateway_node("c")
    sent = []

    def die(operation):
        if operation == "TransactWriteItems":
            sent.append(faults.requests[-1][1])
            raise Death

    faults.before.append(die)
    with pytest.raises(Death):
        await one.connections.admit(owner, "c", node)
    faults.before.clear()
    assert fleet.contents().records.keys() == {"c"}
    client = client_for(fleet.settings, fleet.clock)
    await client.start()
    knowing = Maintenance(client, two, fleet.clock, 40.0, pseudo_nodes=GATEWAY_NODES)
    assert await knowing.recount() == 0
    await client.close()
    assert not await two.connections.withdraw(owner, "c", node)
    with pytest.raises(ClientError):  # what the dead one had sent comes too late
        fleet.boto.transact_write_items(**sent[0])
    assert nothing(fleet.check())


async def test_a_recount_leaves_out_what_changes_meanwhile(make_fleet):
    fleet = await make_fleet({"client_limit": 64})
    faults = Faults()
    one, two = await fleet.process(faults), await fleet.process()
    await admit(two, "u", "a")
    loop = asyncio.get_running_loop()

    def between(operation):
        if operation == "Query":  # the counts have been read
            faults.before.clear()
            asyncio.run_coroutine_threadsafe(two.leave("a"), loop).result(10)

    faults.before.append(between)
    assert await one.maintenance.recount() == 0
    assert nothing(fleet.check())


async def test_a_recount_is_due_once_a_day_for_all(make_fleet, clock):
    fleet = await make_fleet()
    processes = [await fleet.process() for _ in range(3)]
    wrong = {"pk": {"S": "G#1"}, "sk": {"S": "COUNT"}, "ver": {"N": "1"}}
    fleet.write("put_item", Item={**wrong, "n": {"N": "5"}})

    async def reported():
        due = [p.maintenance.recount_if_due() for p in processes]
        return sum(await asyncio.gather(*due))

    assert await reported() == 1
    clock.advance(86399)
    assert await reported() == 0
    clock.advance(1)
    assert await reported() == 1


async def test_connections_of_a_deployment_that_was_down_for_months_are_removed(
    make_fleet, clock
):
    """DynamoDB deletes no connection by itself, or its count would stay for ever."""
    fleet = await make_fleet()
    dead = await fleet.process()
    await admit(dead, "u", "a")
    clock.advance(90 * 86400)
    kept = [item for item in fleet.items() if "ttl" not in item]
    assert len(kept) == len(fleet.items())
    one = await fleet.process()
    assert await one.maintenance.reap() == 1
    assert nothing(fleet.check())
    assert await one.total() == 0


async def test_connections_that_a_process_leaves_behind_are_removed_at_once(make_fleet):
    fleet = await make_fleet()
    one, two = await fleet.process(), await fleet.process()
    await admit(one, "u", "a")
    await one.close()
    await two.maintenance.reap()
    assert nothing(fleet.check())


async def test_a_start_that_was_cancelled_leaves_no_row(make_fleet, store_clock):
    """The row was written, but its answer did not come: the close deletes it."""
    fleet = await make_fleet()
    written, go_on = threading.Event(), threading.Event()
    faults = Faults()

    def late(operation):
        if operation == "PutItem":
            written.set()
            go_on.wait(30)

    faults.after.append(late)
    client = client_for(fleet.settings, store_clock, faults)
    await client.start()
    process = Process(client, fleet, 7)
    start = asyncio.create_task(process.maintenance.start())
    assert await asyncio.to_thread(written.wait, 30)
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    go_on.set()
    assert [item["pk"]["S"] for item in fleet.items()] == ["NODES"]
    await process.maintenance.close()
    await process.maintenance.close()
    assert fleet.items() == []
    await client.close()
