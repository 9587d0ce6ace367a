"""The local store under a power cut, as far as one can see it: which fsync comes before and after which rename."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from offload_pipeline.storage import durability
from offload_pipeline.storage.durability import make_root, put_durably

Events = list[tuple[str, Path]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "objects"
    make_root(folder)
    return folder


@pytest.fixture
def events(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Events:
    """Every fsync and rename, in order, with the path that the descriptor stood for at that moment."""
    found: Events = []
    fsync, replace = os.fsync, Path.replace

    def path_of(descriptor: int) -> Path:
        inode = os.fstat(descriptor).st_ino
        return next(path for path in (tmp_path, *tmp_path.rglob("*")) if path.stat().st_ino == inode)

    def recorded_fsync(descriptor: int) -> None:
        found.append(("fsync", path_of(descriptor)))
        fsync(descriptor)

    def recorded_replace(path: Path, target: Path) -> Path:
        found.append(("rename", target))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    monkeypatch.setattr(durability, "_durable", set())
    return found


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_bytes_are_on_disk_before_the_name_and_the_name_before_put_returns(root: Path, events: Events) -> None:
    put_durably(root, "acme/notices/1/a.json.gz", b"data")
    row = root / "acme/notices/1"
    kind, temporary = events[0]
    assert kind == "fsync"
    assert (temporary.parent, temporary.suffix) == (row, ".part")
    assert events[1:3] == [("rename", row / "a.json.gz"), ("fsync", row)]


def test_every_new_folder_is_on_disk_up_to_the_root(root: Path, events: Events) -> None:
    put_durably(root, "acme/notices/1/a.json.gz", b"data")
    folders = [root / "acme/notices/1", root / "acme/notices", root / "acme", root]
    assert events[2:] == [("fsync", folder) for folder in folders]


def test_a_folder_known_to_be_on_disk_costs_no_further_fsync(root: Path, events: Events) -> None:
    put_durably(root, "acme/notices/1/a.json.gz", b"data")
    events.clear()
    put_durably(root, "acme/notices/2/a.json.gz", b"data")
    assert events[2:] == [("fsync", root / "acme/notices/2"), ("fsync", root / "acme/notices")]


def test_folders_that_somebody_else_made_are_not_taken_to_be_on_disk(root: Path, events: Events) -> None:
    (root / "acme/notices/1").mkdir(parents=True)
    put_durably(root, "acme/notices/1/a.json.gz", b"data")
    assert {path for kind, path in events[2:]} == {
        root / "acme/notices/1",
        root / "acme/notices",
        root / "acme",
        root,
    }


def test_a_folder_made_anew_is_brought_to_disk_again(root: Path, events: Events) -> None:
    put_durably(root, "acme/notices/1/a.json.gz", b"data")
    (root / "acme").rename(root.parent / "moved away")
    events.clear()
    put_durably(root, "acme/notices/1/a.json.gz", b"data")
    assert ("fsync", root) in events


def test_an_object_beside_the_root_needs_the_root_alone(root: Path, events: Events) -> None:
    put_durably(root, "a.json.gz", b"data")
    assert events[1:] == [("rename", root / "a.json.gz"), ("fsync", root)]


def test_the_stores_own_folder_is_on_disk_too(root: Path, events: Events, tmp_path: Path) -> None:
    make_root(tmp_path / "deep" / "er" / "objects")
    assert {path for _, path in events} == {tmp_path, tmp_path / "deep", tmp_path / "deep/er"}


def test_the_same_key_again_replaces_the_whole_object(root: Path) -> None:
    put_durably(root, "acme/a.json.gz", b"a longer first version")
    put_durably(root, "acme/a.json.gz", b"second")
    assert (root / "acme/a.json.gz").read_bytes() == b"second"
    assert files_in(root) == ["acme/a.json.gz"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_put_that_fails_leaves_the_old_object_and_no_temporary_file(
    root: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    put_durably(root, "acme/a.json.gz", b"old")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os if failing == "fsync" else Path, failing, fail)
    with pytest.raises(OSError, match="Input/output error"):
        put_durably(root, "acme/a.json.gz", b"new")
    assert files_in(root) == ["acme/a.json.gz"]
    assert (root / "acme/a.json.gz").read_bytes() == b"old"


def test_writers_that_meet_in_a_new_folder_all_succeed(root: Path) -> None:
    keys = [f"acme/notices/{number % 4}/{number}.json.gz" for number in range(64)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda key: put_durably(root, key, key.encode()), keys))
    assert files_in(root) == sorted(keys)
    assert all((root / key).read_bytes() == key.encode() for key in keys)


def test_writers_of_one_key_leave_one_whole_object(root: Path) -> None:
    versions = [bytes([number]) * 50_000 for number in range(16)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda data: put_durably(root, "acme/a.json.gz", data), versions))
    assert files_in(root) == ["acme/a.json.gz"]
    assert (root / "acme/a.json.gz").read_bytes() in versions
