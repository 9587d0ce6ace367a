"""A file that counts as stored survives a power cut: bytes, name and folders are on disk before put returns."""

import contextlib
import os
import re
import threading
from pathlib import Path

# Folders above the last one whose own entry this process has seen reach the disk: one per tenant and table.
_durable: set[Path] = set()
_TEMPORARY = re.compile(r"\.[0-9a-f]+\.[0-9a-f]+\.part")


def make_root(root: Path) -> None:
    """Makes the store's own folder, and sees to it that every entry that leads to it is on disk."""
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for folder in {root, *made}:
        # An unreadable parent is not one that we made.
        with contextlib.suppress(PermissionError):
            _fsync_folder(folder.parent)


def put_durably(root: Path, key: str, data: bytes) -> None:
    """Writes `root/key` so that a crash leaves either the old file or the whole new one.

    Temporary file, fsync, rename, then fsync of the folder and of every folder above it that may hold an
    entry not yet on disk, whoever made it: another writer's mkdir is not durable before somebody's fsync.
    """
    target = root / key
    _make_folders(target.parent)
    temporary = target.with_name(f".{threading.get_ident():x}.{os.getpid():x}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(target.parent)
    if target.parent != root:
        _fsync_entries_up_to(root, target.parent)


def is_leftover(key: str) -> bool:
    """Whether the last segment is the name of one of `put_durably`'s temporary files."""
    return _TEMPORARY.fullmatch(key.rpartition("/")[2]) is not None


def _make_folders(path: Path) -> None:
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        _durable.discard(folder)


def _fsync_entries_up_to(root: Path, leaf: Path) -> None:
    _fsync_folder(leaf.parent)
    folder = leaf.parent
    while folder != root and folder not in _durable:
        _fsync_folder(folder.parent)
        _durable.add(folder)
        folder = folder.parent


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
