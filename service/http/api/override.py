"""Options of a channel that are different for one subscription, as JSON has them."""

from __future__ import annotations

import msgspec

from service.core import model

__all__ = ["Override"]


class BoolValue(msgspec.Struct):
    """A boolean that may be absent."""

    value: bool = False


class Override(msgspec.Struct):
    """Options of the namespace that are different for these subscriptions."""

    presence: BoolValue | None = None
    join_leave: BoolValue | None = None
    force_push_join_leave: BoolValue | None = None
    force_recovery: BoolValue | None = None
    force_positioning: BoolValue | None = None

    def override(self) -> model.Override:
        """Return it as the core knows it."""
        return model.Override(
            *(
                None if value is None else value.value
                for value in (
                    self.presence,
                    self.join_leave,
                    self.force_push_join_leave,
                    self.force_recovery,
                    self.force_positioning,
                )
            )
        )
