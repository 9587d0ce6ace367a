"""What a measurement gives: a ratio or a bound with its bar, kept with the runs that it comes from."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

ROUNDS = 5
Found = TypeVar("Found")


@dataclass(frozen=True)
class Measured:
    """One line of the table. `runs` are the same figure for each round, of which `value` is the median or the worst.

    `parts` are what the figure was made of, by name, all in one unit that `detail` names.
    """

    measure: str
    value: float
    unit: str
    bar: float
    is_at_most: bool
    detail: str
    runs: tuple[float, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_met(self) -> bool:
        """Whether the figure keeps to its bar."""
        return self.value <= self.bar if self.is_at_most else self.value >= self.bar


def alternating(subjects: Mapping[str, Callable[[], Found]], rounds: int = ROUNDS) -> dict[str, list[Found]]:
    """Runs each subject once a round, in turn and every round from another one on; gives what each returned."""
    found: dict[str, list[Found]] = {name: [] for name in subjects}
    names = list(subjects)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(subjects[name]())
    return found


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round, so that a slow minute of the machine is on both sides."""
    return [a / b for a, b in zip(over, under, strict=True)]


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def medians(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Name by name."""
    return {name: median([one[name] for one in each]) for name in each[0]}
