"""What is compared takes turns, and what a round gave is compared with the same round."""

import pytest

from benchmarks.results import Measured, alternating, medians, ratios


def test_each_round_begins_with_another_subject_and_every_result_is_given() -> None:
    order: list[str] = []

    def run(name: str) -> int:
        order.append(name)
        return len(order)

    found = alternating({name: lambda name=name: run(name) for name in "abc"}, rounds=4)  # type: ignore[misc]
    assert "".join(order) == "abcbcacababc"
    assert found == {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}


def test_a_round_is_compared_with_the_same_round() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


def test_medians_are_taken_name_by_name() -> None:
    assert medians([{"us": 1.0, "store": 5.0}, {"us": 2.0, "store": 4.0}, {"us": 9.0, "store": 0.0}]) == {
        "us": 2.0,
        "store": 4.0,
    }


@pytest.mark.parametrize(("is_at_most", "value", "is_met"), [(True, 2, True), (True, 3, False), (False, 1, False)])
def test_a_bar_is_kept_to_where_it_is_reached(is_at_most: bool, value: float, is_met: bool) -> None:
    assert Measured("", value, "times", 2, is_at_most=is_at_most, detail="").is_met is is_met
