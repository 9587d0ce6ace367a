"""Stores that count, that call back in the middle of a request, and that fail: each in front of a real one."""

import random
import threading
from collections import Counter
from collections.abc import Callable

from offload_pipeline.errors import StoreUnavailableError
from offload_pipeline.storage.object_store import ObjectStore, Trailer


class CountingStore(ObjectStore):
    """Counts requests by key."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner._store, inner.url, inner._folder)
        self._counting = threading.Lock()
        self.puts: Counter[str] = Counter()
        self.gets: Counter[str] = Counter()
        self.trailers: Counter[str] = Counter()

    def put(self, key: str, data: bytes) -> None:
        with self._counting:
            self.puts[key] += 1
        super().put(key, data)

    def get(self, key: str) -> bytes:
        with self._counting:
            self.gets[key] += 1
        return super().get(key)

    def trailer(self, key: str) -> Trailer:
        with self._counting:
            self.trailers[key] += 1
        return super().trailer(key)

    def forget(self) -> None:
        """Counts from zero again."""
        for counter in (self.puts, self.gets, self.trailers):
            counter.clear()


Hook = Callable[[str], None]


class HookedStore(ObjectStore):
    """Calls back with the object's key, at most once per moment and key, so that a test can act in between."""

    def __init__(self, inner: ObjectStore, **hooks: Hook) -> None:
        """Moments: before_put, after_put, before_get, after_get, before_trailer, after_trailer."""
        super().__init__(inner._store, inner.url, inner._folder)
        self._hooks = hooks
        self._called: set[tuple[str, str]] = set()

    def put(self, key: str, data: bytes) -> None:
        self._call("before_put", key)
        super().put(key, data)
        self._call("after_put", key)

    def get(self, key: str) -> bytes:
        self._call("before_get", key)
        data = super().get(key)
        self._call("after_get", key)
        return data

    def trailer(self, key: str) -> Trailer:
        self._call("before_trailer", key)
        found = super().trailer(key)
        self._call("after_trailer", key)
        return found

    def _call(self, moment: str, key: str) -> None:
        if (moment, key) not in self._called and moment in self._hooks:
            self._called.add((moment, key))
            self._hooks[moment](key)


def truncated(data: bytes) -> bytes:
    """Its first half."""
    return data[: len(data) // 2]


def altered(data: bytes, fraction: int = 2) -> bytes:
    """One bit flipped, in the middle or elsewhere; the length, the trailer and so the cheap check stay as they were."""
    spoilt = bytearray(data)
    spoilt[len(data) // fraction] ^= 0x01
    return bytes(spoilt)


class FaultyStore(ObjectStore):
    """Until `heal`, most requests go wrong, each fault with the same chance; the seed makes runs repeatable."""

    FAULTS_OF_PUT = ("", "refused", "refused after storing", "nothing stored", "truncated", "altered")
    FAULTS_OF_GET = ("", "", "refused", "truncated", "altered")

    def __init__(self, inner: ObjectStore, seed: int) -> None:
        super().__init__(inner._store, inner.url, inner._folder)
        self._random = random.Random(seed)  # noqa: S311 - faults, not secrets
        self._is_faulty = True
        self.faults: Counter[str] = Counter()

    def heal(self) -> None:
        """No further fault."""
        self._is_faulty = False

    def put(self, key: str, data: bytes) -> None:
        fault = self._next("put", self.FAULTS_OF_PUT)
        if fault == "refused":
            raise StoreUnavailableError("the store failed (503)")
        if fault != "nothing stored":
            super().put(key, {"truncated": truncated, "altered": altered}.get(fault, bytes)(data))
        if fault == "refused after storing":
            raise StoreUnavailableError("the store failed (time-out)")

    def get(self, key: str) -> bytes:
        fault = self._next("get", self.FAULTS_OF_GET)
        if fault == "refused":
            raise StoreUnavailableError("the store failed (500)")
        data = super().get(key)
        return {"truncated": truncated(data), "altered": altered(data, 4)}.get(fault, data)

    def trailer(self, key: str) -> Trailer:
        if self._next("trailer", ("", "refused")):
            raise StoreUnavailableError("the store failed (500)")
        return super().trailer(key)

    def _next(self, request: str, faults: tuple[str, ...]) -> str:
        fault = self._random.choice(faults) if self._is_faulty else ""
        self.faults[f"{request} {fault}" if fault else "none"] += 1
        return fault
