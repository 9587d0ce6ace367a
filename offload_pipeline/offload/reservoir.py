"""A uniform sample of a stream of unknown length (Vitter's algorithm R)."""

import random
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Reservoir(Generic[Item]):
    """Keeps `size` of what it is offered, each with the same chance."""

    def __init__(self, size: int) -> None:
        self._size, self._seen = size, 0
        self.kept: list[Item] = []

    def offer(self, item: Item) -> None:
        """Keeps the item, in place of another one once it is full, or passes it over."""
        self._seen += 1
        if len(self.kept) < self._size:
            self.kept.append(item)
        elif self._size and (slot := random.randrange(self._seen)) < self._size:  # noqa: S311 - a sample, not a secret
            self.kept[slot] = item
