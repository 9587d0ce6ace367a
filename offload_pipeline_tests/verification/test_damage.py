"""Everything that can be wrong with a stored payload, in every state of its row, and which look at it finds it."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from offload_pipeline_tests.offload.installation import Installation
from offload_pipeline_tests.offload.stores import altered, truncated
from offload_pipeline_tests.verification.editing import edit_row, gate, payloads


def object_missing(notices: Installation, key: int, _other: int) -> None:
    notices.store.delete(notices.object_key(key))


def object_truncated(notices: Installation, key: int, _other: int) -> None:
    change(notices, key, truncated)


def object_altered(notices: Installation, key: int, _other: int) -> None:
    change(notices, key, altered)


def objects_swapped(notices: Installation, key: int, other: int) -> None:
    """Of the same size."""
    one, two = notices.object_key(key), notices.object_key(other)
    mine, theirs = notices.store.get(one), notices.store.get(two)
    notices.store.put(one, theirs)
    notices.store.put(two, mine)


def key_edited_to_nothing(notices: Installation, key: int, _other: int) -> None:
    edit_row(notices, key, "raw_object_key = 'elsewhere/' || raw_object_key")


def key_edited_to_another_rows(notices: Installation, key: int, other: int) -> None:
    edit_row(notices, key, "raw_object_key = %s", notices.object_key(other))


def hash_edited(notices: Installation, key: int, _other: int) -> None:
    edit_row(notices, key, "payload_hash_sha256 = repeat('0', 64)")


def size_edited(notices: Installation, key: int, _other: int) -> None:
    edit_row(notices, key, "payload_bytes = payload_bytes + 1")


def change(notices: Installation, key: int, changed: Callable[[bytes], bytes]) -> None:
    object_key = notices.object_key(key)
    notices.store.put(object_key, changed(notices.store.get(object_key)))


DAMAGES = (
    object_missing, object_truncated, object_altered, objects_swapped, key_edited_to_nothing,
    key_edited_to_another_rows, hash_edited, size_edited,
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """A pass over rows in one state. The default sample of 50 holds the few rows of a test whole."""

    state: str
    pass_: str
    sample_rows: int | None = None
    full: bool = False
    misses: tuple[Callable[..., None], ...] = ()


LOOKS = (
    # The end of an object is looked at: bytes altered before it, or another object of the same size, are not seen.
    Look("new copies", "the cheap look alone", sample_rows=0, misses=(object_altered, objects_swapped)),
    Look("new copies", "the default pass"),
    Look("new copies", "--full", full=True),
    Look("released rows", "the cheap look alone", sample_rows=0, misses=DAMAGES),
    Look("released rows", "the default pass"),
    Look("released rows", "--full", full=True),
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.replace("_", " "))
@pytest.mark.parametrize("look", LOOKS, ids=lambda look: f"{look.state}, {look.pass_}")
def test_what_a_pass_finds(
    notices_anywhere: Installation, look: Look, damage: Callable[[Installation, int, int], None]
) -> None:
    notices = notices_anywhere
    first, second, third = notices.insert(payloads(3))
    notices.copy()
    if look.state == "released rows":
        assert notices.drain().is_sound
    mark = gate(notices)
    damage(notices, first, third)

    result = notices.verify(sample_rows=look.sample_rows, full=look.full)

    if damage in look.misses:
        assert result.passed
        return
    spoilt = {first, third} if damage is objects_swapped else {first}
    assert {found.named.key for found in result.damaged} == {(str(key),) for key in spoilt}
    assert not result.unanswered
    assert gate(notices) == mark, "the gate does not move"
    assert notices.release().rows_released == 0
    assert set(notices.failures()) == {str(key) for key in spoilt}
    if look.state == "new copies":
        assert notices.statuses() == {
            key: "pending_move" if key in spoilt else "copied" for key in (first, second, third)
        }
        assert notices.drain().is_sound, "the payload is still in the row, and is copied again"
        notices.assert_invariant()
    else:
        assert notices.one_status() == "in_storage"
        assert not notices.verify(sample_rows=0).passed, "what is known keeps the gate shut, whatever the sample meets"
