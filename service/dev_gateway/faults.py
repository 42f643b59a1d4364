"""Faults: what a gateway does at its worst, at random from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

__all__ = ["Faults", "Post"]


class Post(Enum):
    """What becomes of a POST to a connection.

    Attributes:
        SENT: It reaches the client and is answered 200.
        THROTTLED: 429; it does not reach the client.
        GONE: 410, although the connection is open; it does not reach the client.
        ANSWER_LOST: It reaches the client, and the caller gets no answer.
        LOST: It does not reach the client, and the caller gets no answer.
        LATE: The caller gets no answer, and it reaches the client later.
    """

    SENT = "sent"
    THROTTLED = "throttled"
    GONE = "gone"
    ANSWER_LOST = "answer lost"
    LOST = "lost"
    LATE = "late"


@dataclass
class Faults:
    """Probabilities of faults, from 0 to 1; none by default.

    Attributes:
        seed: Of the randomness; the same seed and order of calls, the same faults.
        disconnect_lost: The application is not told that a socket is gone.
        delay: Longest delay of an invocation or a POST, in seconds; each is delayed
            at random, so that those of one connection overtake each other.
        throttled: A POST is `Post.THROTTLED`.
        gone: A POST is `Post.GONE`.
        answer_lost: A POST is `Post.ANSWER_LOST`.
        lost: A POST is `Post.LOST`.
        late: A POST is `Post.LATE`.
        late_by: Longest lateness of such a POST, in seconds.
        duplicated: An asynchronous invocation starts twice.
    """

    seed: int = 0
    disconnect_lost: float = 0.0
    delay: float = 0.0
    throttled: float = 0.0
    gone: float = 0.0
    answer_lost: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    late_by: float = 1.0
    duplicated: float = 0.0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def loses_disconnect(self) -> bool:
        """Whether this `$disconnect` is lost."""
        return self._random.random() < self.disconnect_lost

    def invocations(self) -> int:
        """Return how often an asynchronous invocation starts."""
        return 1 + (self._random.random() < self.duplicated)

    def delays(self) -> float:
        """Return the delay of an invocation or a POST, in seconds."""
        return self._random.uniform(0.0, self.delay) if self.delay else 0.0

    def lateness(self) -> float:
        """Return by how much a POST is late, in seconds."""
        return self._random.uniform(0.0, self.late_by)

    def post(self) -> Post:
        """Return what becomes of a POST."""
        draw = self._random.random()
        for probability, fate in (
            (self.throttled, Post.THROTTLED),
            (self.gone, Post.GONE),
            (self.answer_lost, Post.ANSWER_LOST),
            (self.lost, Post.LOST),
            (self.late, Post.LATE),
        ):
            if draw < probability:
                return fate
            draw -= probability
        return Post.SENT
