"""Which request goes wrong, and how: drawn from a seed and the request itself, so that a failed run can be repeated."""

import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence

Kinds = Mapping[str, Sequence[str]]
"""By request (PUT, GET, …) the faults that may happen to it, each with the same chance."""


# Asked for so seldom that without favour a campaign would hardly see them fail.
FAVOURED = {"LIST": 4, "NEXT PAGE": 4, "DELETE": 2, "HEAD": 2}


class Chance:
    """A fault with probability `rate`, more for the favoured.

    The same for the n-th request of a kind and key, in whatever order they come.
    """

    def __init__(self, seed: int, kinds: Kinds, rate: float = 0.0) -> None:
        self.rate = rate
        self._seed, self._kinds = seed, kinds
        self._seen: Counter[tuple[str, str]] = Counter()
        self._turn = threading.Lock()

    def draw(self, request: str, key: str) -> str | None:
        """The fault of this request, or None."""
        with self._turn:
            self._seen[request, key] += 1
            number = self._seen[request, key]
        drawn = random.Random(f"{self._seed}/{request}/{key}/{number}")  # noqa: S311 - faults, not secrets
        kinds = self._kinds.get(request)
        return drawn.choice(kinds) if kinds and drawn.random() < self.rate * FAVOURED.get(request, 1) else None
