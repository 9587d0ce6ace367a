"""A local store on a disk that fails: requests that go wrong by chance, and a small file system that is really full."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from offload_pipeline.errors import StoreDeniedError, StoreUnavailableError
from offload_pipeline.storage.object_store import ObjectStore, StoredObject, Trailer
from offload_pipeline_tests.faults.chance import Chance
from offload_pipeline_tests.offload.stores import altered, truncated

ALL_KINDS = {
    "PUT": ("refused", "refused after storing", "nothing stored", "truncated", "altered"),
    "GET": ("refused", "truncated", "altered"),
    "END": ("refused",),
    "HEAD": ("refused", "denied"),
    "LIST": ("refused", "refused midway", "empty", "ended midway"),
    "DELETE": ("refused", "refused after deleting", "nothing deleted"),
}
# A GET is altered at another place than a PUT: two alterations that undo each other would be none.
_SPOILED_PUTS: Mapping[str, Callable[[bytes], bytes]] = {"truncated": truncated, "altered": altered}
_SPOILED_GETS: Mapping[str, Callable[[bytes], bytes]] = {
    "truncated": truncated,
    "altered": partial(altered, fraction=4),
}


class FaultyDisk(ObjectStore):
    """A real store whose requests fail by chance; calls back with each fault."""

    def __init__(self, inner: ObjectStore, seed: int, rate: float, tell: Callable[[str], None]) -> None:
        super().__init__(inner._store, inner.url, inner._folder)
        self._chance, self._tell = Chance(seed, ALL_KINDS, rate), tell

    def put(self, key: str, data: bytes) -> None:
        fault = self._draw("PUT", key)
        if fault != "nothing stored":
            super().put(key, _SPOILED_PUTS.get(fault, bytes)(data))
        if fault == "refused after storing":
            raise StoreUnavailableError("the store failed (answer lost)")

    def get(self, key: str) -> bytes:
        fault = self._draw("GET", key)
        return _SPOILED_GETS.get(fault, bytes)(super().get(key))

    def trailer(self, key: str) -> Trailer:
        self._draw("END", key)
        return super().trailer(key)

    def head(self, key: str) -> StoredObject:
        if self._draw("HEAD", key) == "denied":
            raise StoreDeniedError("access denied (permission)")
        return super().head(key)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        fault = self._draw("LIST", prefix)
        found = [] if fault == "empty" else list(super().list(prefix))
        yield from found[: len(found) // 2] if fault.endswith("midway") else found
        if fault == "refused midway":
            raise StoreUnavailableError("the store failed (input/output error)")

    def delete(self, key: str) -> None:
        fault = self._draw("DELETE", key)
        if fault != "nothing deleted":
            super().delete(key)
        if fault == "refused after deleting":
            raise StoreUnavailableError("the store failed (answer lost)")

    def _draw(self, request: str, key: str) -> str:
        fault = self._chance.draw(request, key) or ""
        if fault:
            self._tell(f"{request} {fault}")
        if fault == "refused":
            raise StoreUnavailableError("the store failed (input/output error)")
        return fault


class SmallDisk:
    """A file system of its own for a local store, which can be filled up and emptied while a worker writes."""

    def __init__(self, folder: Path) -> None:
        self.objects = folder / "objects"
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Until the last byte; the store's next write meets ENOSPC."""
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 4096)

    def make_room(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk | None]:
    """Mounted on the folder; None where mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", folder], check=True)
