"""One batch of a channel, planned: outcomes, and the transaction that makes them true.

Pure: what is known of the channel comes in, a `Plan` comes out. If the transaction is
cancelled, `apply_failure` takes from its reasons what was not known, and the batch is
planned again. Each round learns something that is final (a key that is taken) or meets
a HEAD that others have moved, which is their progress.

What the conditions say together: nobody appended since *head* was read, none of the
keys is taken, and the place of the batch is free. That the last one fails while the
first holds happens only if a HEAD was lost or set back by hand: the channel then goes
on in its next epoch, since no offset is ever given twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.core.errors import StoreError
from service.core.model import Appended, Channel, Draft, Position, Publication
from service.core.ports import AppendDone, Committed, History
from service.stores.dynamodb.errors import Item, TransactionCancelled
from service.stores.dynamodb.log.items import (
    HEAD_KEPT,
    Head,
    decode_head,
    decode_key,
    encode_batch,
    encode_head,
    head_key,
    key_item,
    next_epoch,
    time_to_live,
)
from service.stores.history_cache import FOREVER, milliseconds

__all__ = ["Plan", "Waiting", "apply_failure", "plan"]

KEY_TTL = 300_000  # ms; what the server API documents

_NOWHERE = Position(0, "")


class Waiting:
    """One accepted append.

    Attributes:
        draft: What is appended.
        row: The same as it is stored.
        history: The channel's settings.
        done: Is told of the outcome.
        cost: In the queue, bytes.
        deadline: When to give up, in the clock's time.
    """

    __slots__ = ("cost", "deadline", "done", "draft", "history", "row")

    def __init__(
        self,
        draft: Draft,
        history: History,
        done: AppendDone,
        cost: int,
        deadline: float,
    ) -> None:
        self.draft = draft
        self.row = b""
        self.history = history
        self.done = done
        self.cost = cost
        self.deadline = deadline


class Plan:
    """What becomes of a batch if its transaction is done.

    Attributes:
        head: The channel's state then.
        outcomes: One for each append.
        committed: What is fresh, in order.
        size: The present history size, 0 if nothing gets an offset.
        actions: Of the transaction; none if there is nothing to write.
        places: What each action is: ``head``, ``batch``, or a key.
        lookups: Keys that must be looked up before anything is done: their drafts
            are skipped, so no condition would find them.
        skips: Some draft was skipped for its version, as *head* has it.
        begun: When its transaction was sent, in the clock's time.
    """

    __slots__ = (
        "actions",
        "begun",
        "committed",
        "head",
        "lookups",
        "outcomes",
        "places",
        "size",
        "skips",
    )

    def __init__(self, head: Head) -> None:
        self.head = head
        self.outcomes: list[Appended] = []
        self.committed: list[Committed] = []
        self.size = 0
        self.actions: list[dict[str, Any]] = []
        self.places: list[tuple[str, str]] = []
        self.lookups: list[str] = []
        self.skips = False
        self.begun = 0.0


def plan(
    table: str,
    channel: Channel,
    batch: Sequence[Waiting],
    head: Head,
    known: dict[str, Position | None],
    now: int,
) -> Plan:
    """Plan a batch.

    Args:
        table: Its name.
        channel: The channel.
        batch: At most `items.BATCH` of them.
        head: The channel's state, as it is believed to be.
        known: Keys whose use is known; None for one known not to be used.
        now: Unix milliseconds.
    """
    made = Plan(head)
    time = max(now, head.time)
    top, version, version_epoch = head.top, head.version, head.version_epoch
    keys: dict[str, Position] = {}
    rows: list[bytes] = []
    kept = lasting = 0  # ms
    for waiting in batch:
        draft, history = waiting.draft, waiting.history
        key = draft.idempotency_key
        used = (keys.get(key) or known.get(key)) if key else None
        if used is not None:
            made.outcomes.append(Appended(used, False))
            continue
        if not history.size:
            position = _NOWHERE
            publication = Publication(0, draft.data, draft.info, draft.tags)
        else:
            if draft.version:
                if draft.version <= version and draft.version_epoch == version_epoch:
                    made.skips = True
                    if key and key not in known:
                        made.lookups.append(key)
                    skipped = Position(top, head.epoch)
                    made.outcomes.append(Appended(skipped, False))
                    continue
                version, version_epoch = draft.version, draft.version_epoch
            top += 1
            rows.append(waiting.row)
            made.size = history.size
            kept = max(kept, milliseconds(history.ttl))
            lasting = max(lasting, milliseconds(history.meta_ttl), kept)
            position = Position(top, head.epoch)
            publication = Publication(top, draft.data, draft.info, draft.tags, time)
        made.committed.append(Committed(channel, publication, position.epoch))
        made.outcomes.append(Appended(position, True))
        if key:
            keys[key] = position
    if rows:
        made.head = head._replace(
            top=top,
            batch=len(rows),
            time=time,
            ends=min(time + lasting, FOREVER),
            version=version,
            version_epoch=version_epoch,
            stored=(head.epoch, top),
        )
        _write_head(made, table, channel, head)
        if kept:
            ends = min(time + kept, FOREVER)
            first = head.top + 1
            for item in encode_batch(channel, head, first, rows, time, ends):
                _put(made, ("batch", ""), table, item, "attribute_not_exists(pk)")
    for key, position in keys.items():
        item = key_item(channel, key, position, now + KEY_TTL)
        free = "attribute_not_exists(pk) OR ends <= :now"
        _put(made, ("key", key), table, item, free, {":now": {"N": str(now)}})
    return made


def apply_failure(
    cancelled: TransactionCancelled,
    made: Plan,
    channel: Channel,
    head: Head,
    known: dict[str, Position | None],
    now: int,
) -> Head | None:
    """Take from a cancelled transaction what was not known.

    Returns:
        The state to plan with next; None if it has to be read.

    Raises:
        StoreError: Nothing was learnt, so that another attempt would end the same.
    """
    learnt = False
    moved = False
    found: Head | None = head
    for index, (place, key) in enumerate(made.places):
        if not cancelled.failed(index):
            continue
        item = cancelled.reasons[index].item
        if place == "head":
            learnt = moved = True
            found = None
            if item is not None:
                found = decode_head(item, head.origin, channel, head.shards, now)
        elif place == "key":
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
            )
    if not learnt:
        raise StoreError("DynamoDB refuses a batch and does not say why")
    return found


def _write_head(made: Plan, table: str, channel: Channel, head: Head) -> None:
    values = encode_head(made.head)
    if head.stored is None or head.stored[0] != head.epoch:  # new, or restarted
        values["floor"] = {"N": "0"}
        values["rev"] = {"N": str(head.revision)}
        values["shards"] = {"N": str(head.shards)}
        values["origin"] = {"S": head.origin}
    if head.stored is None:
        values["asks"] = {"N": "0"}
    ends = made.head.ends + HEAD_KEPT if made.head.ends < FOREVER else FOREVER
    ttl = time_to_live(ends)
    values.update(ttl)
    update = "SET " + ", ".join(f"#{name} = :{name}" for name in values)
    names = {f"#{name}": name for name in values}
    if not ttl:
        update += " REMOVE #ttl"
        names["#ttl"] = "ttl"
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
    made.actions.append(
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
    made.places.append(("head", ""))


def _put(
    made: Plan,
    place: tuple[str, str],
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
    made.actions.append({"Put": put})
    made.places.append(place)
