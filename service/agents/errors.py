"""Reasons why an event, a run or a viewer is refused, each with a stable code.

| code | what it says | temporary |
|---|---|---|
| ``invalid_event`` | the event is not JSON of a type that the protocol has | no |
| ``wrong_order`` | the protocol's order does not allow the event here | no |
| ``run_over`` | the run has its terminal event | no |
| ``too_large`` | the event, or the run with it, is larger than a run may be | no |
| ``thread_busy`` | another run of the thread lives | yes |
| ``run_exists`` | a run of this id was started before; nothing is started | no |
| ``run_unknown`` | the thread has no such run that lives | no |
| ``too_many_runs`` | the process has as many runs as it may have | yes |
| ``run_lost`` | another process, or a fault of the store, has ended the run | no |
"""

from __future__ import annotations

from service.core.errors import SteadwireError

__all__ = ["AgentsMissing", "Gone", "Refused", "RunExists"]

_TEMPORARY = frozenset({"thread_busy", "too_many_runs"})


class Refused(SteadwireError):
    """What was asked is not done, and nothing of it is stored.

    Attributes:
        code: The stable word of the table above.
        reason: A sentence for the sender; it quotes ids, never texts.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason

    @property
    def temporary(self) -> bool:
        """Whether the same may be done later."""
        return self.code in _TEMPORARY


class RunExists(Refused):
    """A start of a run that was started before; it starts nothing.

    Attributes:
        offset: The offset of its RUN_STARTED.
        live: Whether it has no terminal event yet.
    """

    def __init__(self, run: str, offset: int, *, live: bool) -> None:
        super().__init__("run_exists", f"the run {run[:64]!r} was started before")
        self.offset = offset
        self.live = live


class Gone(SteadwireError):
    """A viewer's position is not in the history any more: it joins anew."""


class AgentsMissing(SteadwireError):
    """``ag-ui-protocol`` is not installed; ``steadwire[agents]`` has it."""

    def __init__(self) -> None:
        super().__init__(
            "agent runs need the package ag-ui-protocol: "
            "pip install 'steadwire[agents]'"
        )
