"""Which request goes wrong, and how: drawn from a seed and the request itself, so that a failed run can be repeated."""

import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence

Kinds = Mapping[str, Sequence[str]]
"""By request (PUT, GET, …) the faults that may happen to it, each with the same chance."""


# A collection asks for the first page once, and for so many others, and for the ages of so many objects (of which one
# refusal ends it), that without mercy it would never come to delete anything.
WEIGHTS = {"LIST": 2, "NEXT PAGE": 0.3, "HEAD": 0.05, "DELETE": 3}


class Chance:
    """A fault with probability `rate`, times the request's weight.

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
        return drawn.choice(kinds) if kinds and drawn.random() < self.rate * WEIGHTS.get(request, 1) else None
