"""Threads that work in bulk share the room that there is for payloads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from offload_pipeline.offload.room import Room

TOO_LONG_SECONDS = 30
A_MOMENT_SECONDS = 0.05


@pytest.mark.parametrize(("taken", "wanted"), [(80, 40), (300, 1), (1, 300)])
def test_who_finds_no_room_waits_until_there_is(taken: int, wanted: int) -> None:
    room, is_in = Room(100), threading.Event()

    def come_in() -> None:
        with room.taken(wanted):
            is_in.set()

    with ThreadPoolExecutor(1) as threads:
        with room.taken(taken):
            comes = threads.submit(come_in)
            assert not is_in.wait(A_MOMENT_SECONDS)
        comes.result(TOO_LONG_SECONDS)
    assert is_in.is_set()


def test_as_many_as_there_is_room_for_are_in_together() -> None:
    room, all_are_in = Room(100), threading.Barrier(5)

    def come_in(_: int) -> None:
        with room.taken(20):
            all_are_in.wait(TOO_LONG_SECONDS)

    with ThreadPoolExecutor(5) as threads:
        list(threads.map(come_in, range(5)))


def test_room_is_given_back_when_the_work_fails() -> None:
    room = Room(100)
    with pytest.raises(OSError, match="lost"), room.taken(100):
        raise OSError("lost")
    with room.taken(100):
        pass
