"""What passes between the event loop and the writer's thread, and what a batch writes.

Plain slotted objects: a dataclass for each publication was measurable.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.core.model import Appended, Channel, Draft, Position
from service.core.ports import AppendDone, Committed, History
from service.stores.history_cache import FOREVER, milliseconds

__all__ = ["Commit", "Entry", "Plan", "State"]

Entry = tuple[Channel, Draft, History, AppendDone, int]
"""One accepted append; the last item is its cost in the queue, in bytes."""


class Commit:
    """What became of one batch.

    Attributes:
        entries: The batch.
        outcomes: One for each entry.
        committed: What is fresh, in order.
        sizes: The history size of each channel that got offsets.
        stored: Whether the database had a part in it.
    """

    __slots__ = ("committed", "entries", "outcomes", "sizes", "stored")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.outcomes: list[Appended] = []
        self.committed: list[Committed] = []
        self.sizes: dict[Channel, int] = {}
        self.stored = False


class State:
    """What the next append to a channel must know.

    Attributes:
        id: Of its row.
        name: The channel.
        epoch: Of its stream.
        history: The settings whose times its row has.
        top: The newest offset.
        first: The oldest offset stored; ``top + 1`` if none is.
        time: Of the newest publication, Unix milliseconds.
        version: The highest of `version_epoch` that was published, 0 for none.
        version_epoch: What `version` belongs to.
        new: It has no row yet.
        changed: Its row must be updated.
        due: When the sweep must look at it at the latest, Unix milliseconds; only
            of interest while `new` or `changed`.
    """

    __slots__ = (
        "changed",
        "due",
        "epoch",
        "first",
        "history",
        "id",
        "name",
        "new",
        "time",
        "top",
        "version",
        "version_epoch",
    )

    def __init__(
        self, number: int, name: Channel, epoch: str, history: History
    ) -> None:
        self.id = number
        self.name = name
        self.epoch = epoch
        self.history = history
        self.top = 0
        self.first = 1
        self.time = 0
        self.version = 0
        self.version_epoch = ""
        self.new = True
        self.changed = False
        self.due = FOREVER

    @property
    def times(self) -> tuple[int, int]:
        """The ttl and meta_ttl of `history`, in milliseconds."""
        return milliseconds(self.history.ttl), milliseconds(self.history.meta_ttl)

    def has_version(self, draft: Draft) -> bool:
        """Return whether *draft* is no newer than what was published."""
        return (
            draft.version <= self.version and draft.version_epoch == self.version_epoch
        )


class Plan:
    """The rows that a batch writes.

    Attributes:
        commit: The outcome, if they are written.
        rows: Of publications, flat.
        keys: Of idempotency, flat.
        keyed: Where the keys seen so far were used.
        channels: The channels that get offsets.
    """

    __slots__ = ("channels", "commit", "keyed", "keys", "rows")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.commit = Commit(entries)
        self.rows: list[object] = []
        self.keys: list[object] = []
        self.keyed: dict[tuple[Channel, str], Position] = {}
        self.channels: dict[Channel, State] = {}
