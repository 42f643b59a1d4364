"""Plans one batch of a channel: its outcomes, and the transaction that commits them.

Pure: the channel's state comes in, a `BatchPlan` comes out. If the transaction is
cancelled, `apply_failure` learns from the reasons, and the batch is planned again. Each
round either learns something final (a key that is taken) or finds that another writer
has moved HEAD, so that some writer always makes progress.

The conditions of a transaction say together: no writer appended since *head* was read,
none of the keys is taken, and the batch's item does not exist. The last one fails alone
only if a HEAD was lost or set back by hand: the channel then goes on in its next epoch,
since no offset is ever given twice.

Where the deployment has leases, one more condition names the owner that was read, and
the same transaction takes the lease of a channel that is free, or whose holder is dead.
So there is no moment at which a stored publication has nobody in charge of it.

Where the deployment has a broker, HEAD names the owner of the channel (`handover`). An
append that another process has handed over is committed only under the term for which
it was meant: one more condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from service.core.errors import StoreBusy, StoreError
from service.core.lease import LEASE_SECONDS, ChannelState, Hold
from service.core.model import Appended, Channel, Draft, Position, Publication
from service.core.ports import AppendDone, Committed, History
from service.stores.dynamodb.errors import Item, TransactionCancelled
from service.stores.dynamodb.log.items import (
    HEAD_KEPT,
    Head,
    decode_head,
    decode_key,
    encode_batch,
    encode_duty,
    encode_head,
    head_key,
    key_item,
    next_epoch,
    time_to_live,
)
from service.stores.history_cache import FOREVER, milliseconds

__all__ = [
    "BatchPlan",
    "Handed",
    "OwnerChanged",
    "PendingAppend",
    "Taking",
    "apply_failure",
    "channel_state",
    "plan_batch",
]

KEY_TTL = 300_000  # ms; what the server API documents

_NOWHERE = Position(0, "")


class Taking(NamedTuple):
    """How an append takes the lease of a channel.

    Attributes:
        token: Names the hold; never used before.
        hands_over: Another process is to deliver: HEAD remembers the duty.
    """

    token: str
    hands_over: bool


class Handed:
    """A request of another process (`handover`), for all of its appends.

    Attributes:
        term: Commit them while HEAD names this one.
        failed: One of them was not committed, so no later one may be.
    """

    __slots__ = ("failed", "term")

    def __init__(self, term: str) -> None:
        self.term = term
        self.failed = False


class OwnerChanged(StoreBusy):
    """Transient: HEAD names another owner than an append was handed to.

    Attributes:
        term: In HEAD.
    """

    def __init__(self, term: str) -> None:
        super().__init__(term)
        self.term = term


class PendingAppend:
    """One accepted append.

    Attributes:
        draft: The publication.
        row: The same, encoded.
        history: The channel's settings.
        done: Called with the outcome.
        cost: Bytes of the queue's bound that it takes.
        deadline: When to give up, by the clock.
        handed: Another process has handed it over; None for one of this process.
        ident: By which it is found in the log, once it was handed over.
        stored: Where the process to which it was handed has stored it, if it has.
    """

    __slots__ = (
        "cost",
        "deadline",
        "done",
        "draft",
        "handed",
        "history",
        "ident",
        "row",
        "stored",
    )

    def __init__(
        self,
        draft: Draft,
        history: History,
        done: AppendDone,
        cost: int,
        deadline: float,
        handed: Handed | None = None,
    ) -> None:
        self.draft = draft
        self.row = b""
        self.history = history
        self.done = done
        self.cost = cost
        self.deadline = deadline
        self.handed = handed
        self.ident = b""
        self.stored: Position | None = None


class BatchPlan:
    """The outcomes of a batch if its transaction succeeds, and that transaction.

    Attributes:
        head: The channel's state afterwards.
        outcomes: One for each append.
        committed: The fresh publications, in order.
        size: The present history size, 0 if nothing gets an offset.
        actions: Of the transaction; empty if there is nothing to write.
        targets: Of each action, in their order: ``head``, ``batch``, or a key.
        lookups: Keys that must be looked up first: their drafts are skipped, so no
            condition would find them.
        skips: A draft was skipped because *head* has its version or a newer one.
        begun: When the transaction was sent, by the clock.
        hold: The lease that it takes; None if it takes none.
        elsewhere: The channel and the newest position, if another process has
            committed it.
    """

    __slots__ = (
        "actions",
        "begun",
        "committed",
        "elsewhere",
        "head",
        "hold",
        "lookups",
        "outcomes",
        "size",
        "skips",
        "targets",
    )

    def __init__(self, head: Head) -> None:
        self.head = head
        self.outcomes: list[Appended] = []
        self.committed: list[Committed] = []
        self.size = 0
        self.actions: list[dict[str, Any]] = []
        self.targets: list[tuple[str, str]] = []
        self.lookups: list[str] = []
        self.skips = False
        self.begun = 0.0
        self.hold: Hold | None = None
        self.elsewhere: tuple[Channel, Position] | None = None


def plan_batch(
    table: str,
    channel: Channel,
    batch: Sequence[PendingAppend],
    head: Head,
    known: dict[str, Position | None],
    now: int,
    taking: Taking | None = None,
    claim: str = "",
) -> BatchPlan:
    """Plan a batch.

    Args:
        table: Its name.
        channel: The channel.
        batch: At most `items.BATCH` appends.
        head: The channel's state, as far as is known.
        known: Keys whose use is known; None for one known not to be used.
        now: Unix milliseconds.
        taking: How to take the lease; None where there are no leases.
        claim: The owner to set; "" to leave the one of *head*.
    """
    plan = BatchPlan(head)
    time = max(now, head.time)
    top, version, version_epoch = head.top, head.version, head.version_epoch
    keys: dict[str, Position] = {}
    rows: list[bytes] = []
    placed: list[PendingAppend] = []
    kept = lasting = 0  # ms
    for pending in batch:
        draft, history = pending.draft, pending.history
        key = draft.idempotency_key
        used = pending.stored or keys.get(key) or known.get(key)
        if used is not None:
            plan.outcomes.append(Appended(used, pending.stored is not None))
            continue
        if not history.size:
            position = _NOWHERE
            publication = Publication(0, draft.data, draft.info, draft.tags)
        else:
            if draft.version:
                if draft.version <= version and draft.version_epoch == version_epoch:
                    plan.skips = True
                    if key and key not in known:
                        plan.lookups.append(key)
                    skipped = Position(top, head.epoch)
                    plan.outcomes.append(Appended(skipped, False))
                    continue
                version, version_epoch = draft.version, draft.version_epoch
            top += 1
            placed.append(pending)
            rows.append(pending.row)
            plan.size = history.size
            kept = max(kept, milliseconds(history.ttl))
            lasting = max(lasting, milliseconds(history.meta_ttl), kept)
            position = Position(top, head.epoch)
            publication = Publication(top, draft.data, draft.info, draft.tags, time)
        plan.committed.append(
            Committed(channel, publication, position.epoch, draft.delta, draft.urgent)
        )
        plan.outcomes.append(Appended(position, True))
        if key:
            keys[key] = position
    if rows:
        plan.head = head._replace(
            top=top,
            batch=len(rows),
            time=time,
            ends=min(time + lasting, FOREVER),
            version=version,
            version_epoch=version_epoch,
            stored=(head.epoch, top),
            by=claim or head.by,
        )
        lease = _take_lease(plan, channel, head, taking, now)
        guarded = any(pending.handed is not None for pending in batch)
        _write_head(plan, table, channel, head, lease, guarded=guarded)
        if kept:
            ends = min(time + kept, FOREVER)
            first = head.top + 1
            idents = _idents(placed)
            items = encode_batch(channel, head, first, rows, time, ends, idents)
            for item in items:
                _put(plan, ("batch", ""), table, item, "attribute_not_exists(pk)")
    for key, position in keys.items():
        item = key_item(channel, key, position, now + KEY_TTL)
        free = "attribute_not_exists(pk) OR ends <= :now"
        _put(plan, ("key", key), table, item, free, {":now": {"N": str(now)}})
    return plan


def _idents(placed: Sequence[PendingAppend]) -> list[tuple[int, bytes]]:
    """Return the idents of what was handed over, with their places."""
    return [
        (place, pending.ident)
        for place, pending in enumerate(placed)
        if pending.handed is not None
    ]


def apply_failure(
    cancelled: TransactionCancelled,
    plan: BatchPlan,
    channel: Channel,
    head: Head,
    known: dict[str, Position | None],
    now: int,
) -> Head | None:
    """Learn from a cancelled transaction.

    Returns:
        The state to plan with next; None if it must be read.

    Raises:
        StoreError: Nothing was learnt, so another attempt would fail as well.
    """
    learnt = False
    moved = False
    found: Head | None = head
    for index, (target, key) in enumerate(plan.targets):
        if not cancelled.failed(index):
            continue
        item = cancelled.reasons[index].item
        if target == "head":
            learnt = moved = True
            found = None
            if item is not None:
                found = decode_head(item, head.origin, channel, head.shards, now)
        elif target == "key":
            known[key] = decode_key(item, now)
            learnt = learnt or known[key] is not None
        elif not moved:
            learnt = True
            spent = next_epoch(head.origin, channel, head.epoch)
            found = Head(
                spent,
                asks=head.asks,
                shards=head.shards,
                origin=head.origin,
                stored=head.stored,
                owner=head.owner,
                until=head.until,
                duty=head.duty,
                by=head.by,
            )
    if not learnt:
        raise StoreError("DynamoDB refuses a batch without a reason")
    return found


class _Lease(NamedTuple):
    """The part of a write of HEAD that is about the lease.

    Attributes:
        sets: Attributes to set.
        removes: Names of attributes to remove.
        condition: On the owner that was read; "" for none.
        given: Values in the condition.
    """

    sets: Item
    removes: tuple[str, ...]
    condition: str
    given: Item


_NO_LEASE = _Lease({}, (), "", {})


def channel_state(head: Head) -> ChannelState:
    """Return what HEAD says of a channel, for those who deliver."""
    stored = None if head.stored is None else Position(head.stored[1], head.stored[0])
    return ChannelState(
        head.position,
        stored,
        head.floor,
        head.owner,
        head.until,
        head.duty,
        head.shards,
    )


def _take_lease(
    plan: BatchPlan, channel: Channel, head: Head, taking: Taking | None, now: int
) -> _Lease:
    """Plan what the write of HEAD does about the lease; set the plan's hold."""
    if taking is None:
        return _NO_LEASE
    moment = {"N": str(now)}
    if head.owner and head.until >= now:
        held = "attribute_exists(#owner) AND #until >= :now"
        return _Lease({}, (), held, {":now": moment})
    until = max(now + round(LEASE_SECONDS * 1000), head.until)
    sets: Item = {"owner": {"S": taking.token}, "until": {"N": str(until)}}
    removes: tuple[str, ...] = ()
    given: Item = {}
    duty: Position | None = None
    if not head.owner:
        condition = "attribute_not_exists(#owner)"
        delivered, takeover = head.position, False
        if taking.hands_over:
            duty = head.position
            sets["duty"] = encode_duty(duty)
    else:
        condition = "#owner = :old AND #until < :now"
        given = {":old": {"S": head.owner}, ":now": moment}
        takeover = head.duty is None
        delivered = head.duty or plan.head.position
        if delivered.epoch != head.epoch:
            delivered = Position(0, head.epoch)
        if taking.hands_over:
            duty = head.duty
        elif head.duty is not None:
            removes = ("duty",)
    plan.head = plan.head._replace(owner=taking.token, until=until, duty=duty)
    plan.hold = Hold(
        channel,
        taking.token,
        delivered,
        takeover=takeover,
        claimed=not taking.hands_over,
        state=channel_state(plan.head),
    )
    if head.stored is None:
        condition = ""  # that there is no HEAD says all
    return _Lease(sets, removes, condition, given)


def _write_head(
    plan: BatchPlan,
    table: str,
    channel: Channel,
    head: Head,
    lease: _Lease,
    *,
    guarded: bool,
) -> None:
    values = encode_head(plan.head) | lease.sets
    if head.stored is None or head.stored[0] != head.epoch:  # new, or restarted
        values["floor"] = {"N": "0"}
        values["rev"] = {"N": str(head.revision)}
        values["shards"] = {"N": str(head.shards)}
        values["origin"] = {"S": head.origin}
    if head.stored is None:
        values["asks"] = {"N": "0"}
    if plan.head.by != head.by:
        values["by"] = {"S": plan.head.by}
    ends = plan.head.ends + HEAD_KEPT if plan.head.ends < FOREVER else FOREVER
    ttl = time_to_live(ends)
    values.update(ttl)
    update = "SET " + ", ".join(f"#{name} = :{name}" for name in values)
    removed = lease.removes if ttl else ("ttl", *lease.removes)
    names = {f"#{name}": name for name in (*values, *removed)}
    if removed:
        update += " REMOVE " + ", ".join(f"#{name}" for name in removed)
    condition, given = "attribute_not_exists(pk)", {}
    if head.stored is not None:
        condition = "#epoch = :was AND #top = :at_top AND #asks = :asks"
        epoch, top = head.stored
        given = {
            ":was": {"S": epoch},
            ":at_top": {"N": str(top)},
            ":asks": {"N": str(head.asks)},
        }
        names["#asks"] = "asks"
    if guarded:
        condition += " AND #by = :term"
        given[":term"] = {"S": head.by}
        names["#by"] = "by"
    if lease.condition:
        condition += f" AND {lease.condition}"
        given |= lease.given
        for name in ("owner", "until"):
            if f"#{name}" in lease.condition:
                names[f"#{name}"] = name
    plan.actions.append(
        {
            "Update": {
                "TableName": table,
                "Key": head_key(channel),
                "UpdateExpression": update,
                "ConditionExpression": condition,
                "ExpressionAttributeNames": names,
                "ExpressionAttributeValues": {
                    **{f":{name}": value for name, value in values.items()},
                    **given,
                },
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            }
        }
    )
    plan.targets.append(("head", ""))


def _put(
    plan: BatchPlan,
    target: tuple[str, str],
    table: str,
    item: Item,
    condition: str,
    values: dict[str, Any] | None = None,
) -> None:
    put: dict[str, Any] = {
        "TableName": table,
        "Item": item,
        "ConditionExpression": condition,
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }
    if values:
        put["ExpressionAttributeValues"] = values
    plan.actions.append({"Put": put})
    plan.targets.append(target)
