"""The object store as the protocol needs it: put, get, look at the end, and errors sorted by whether they may pass."""

import contextlib
import errno
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import obstore
from obstore import exceptions
from obstore.store import LocalStore, from_url

from offload_pipeline.config import ObjectStoreConfig
from offload_pipeline.errors import (
    ObjectDamagedError,
    ObjectMissingError,
    OffloadError,
    PermanentError,
    StoreDeniedError,
    StoreUnavailableError,
    UserError,
)
from offload_pipeline.storage.durability import make_root, put_durably

# Plain clients that honour Content-Encoding then see JSON.
ATTRIBUTES = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
CONNECT_TIMEOUT = "5s"
# The client library retries 5xx and broken connections itself; what still fails is retried a pass later.
RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
PROBE_KEY = ".offload/probe"
# RFC 1952: the last eight bytes of a gzip member are CRC32 and size modulo 2**32 of what was packed.
TRAILER_BYTES = 8
SMALLEST_GZIP_BYTES = 18

_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
# Answers that will not change however often the same request is sent.
_PERMANENT_STATUS = {"400", "405", "411", "413", "414", "416", "501"}
# S3 answers 400 also for what is no fault of the object: a slow or cut upload passes, and credentials or a region
# that do not fit concern every row alike.
_TRANSIENT_CODES = {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}
_DENIED_CODES = {
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "AuthorizationHeaderMalformed",
    "InvalidBucketName",
}


@dataclass(frozen=True)
class Trailer:
    """What the end of a stored object tells without reading it whole."""

    object_bytes: int
    crc32: int
    payload_bytes_mod_2_32: int


class ObjectStore:
    """One bucket or folder. Every method raises only errors of `offload_pipeline.errors`."""

    def __init__(self, store: Any, url: str, folder: Path | None = None) -> None:
        self._store, self.url, self._folder = store, url, folder

    def put(self, key: str, data: bytes) -> None:
        """Stores the object, replacing what was there; on a local store only fsync counts as stored."""
        with self._translated(key):
            if self._folder is not None:
                put_durably(self._folder, key, data)
            else:
                obstore.put(self._store, key, data, attributes=ATTRIBUTES, use_multipart=False)

    def get(self, key: str) -> bytes:
        """The whole object as stored, still packed."""
        with self._translated(key):
            return obstore.get(self._store, key).bytes().to_bytes()

    def trailer(self, key: str) -> Trailer:
        """Size, CRC32 and unpacked size from one small request. Raises ObjectDamagedError for what is no gzip."""
        with self._translated(key):
            try:
                found = obstore.get(self._store, key, options={"range": {"suffix": TRAILER_BYTES}})
                size, end = found.meta["size"], found.bytes().to_bytes()
            except (exceptions.GenericError, exceptions.NotSupportedError):
                # Azure knows no suffix ranges, and an empty object has no range at all.
                size = obstore.head(self._store, key)["size"]
                start = max(0, size - TRAILER_BYTES)
                end = obstore.get_range(self._store, key, start=start, end=size).to_bytes() if size else b""
        if size < SMALLEST_GZIP_BYTES or len(end) != TRAILER_BYTES:
            raise ObjectDamagedError(f"{key} is {size} bytes long: truncated")
        crc32, payload_bytes = struct.unpack("<II", end)
        return Trailer(size, crc32, payload_bytes)

    def delete(self, key: str) -> None:
        """Removes the object; one that is not there is no error."""
        with contextlib.suppress(ObjectMissingError), self._translated(key):
            obstore.delete(self._store, key)

    def check(self) -> None:
        """Stores and reads a probe. Raises UserError in one line where the store cannot be used as configured."""
        try:
            self.put(PROBE_KEY, b"probe")
            if self.get(PROBE_KEY) != b"probe":
                raise UserError(f"{self.url}: the store gave back other bytes than were stored; do not use it")
        except (StoreDeniedError, ObjectMissingError) as error:
            raise UserError(
                f"{self.url}: {error}; check the bucket's name, the credentials in the environment, "
                "and that they may put and get objects"
            ) from None
        except PermanentError as error:
            raise UserError(f"{self.url}: {error}; check object_store in offload.yaml") from None
        except StoreUnavailableError as error:
            raise StoreUnavailableError(f"{self.url}: {error}; check that the store answers and has room") from None

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except OffloadError:
            raise
        except (OSError, exceptions.BaseError) as error:
            raise _as_our_own(error, key) from error


def _as_our_own(error: Exception, key: str) -> OffloadError:
    text = str(error)
    code, status = _CODE.search(text), _STATUS.search(text)
    reason = " ".join(found[1] for found in (status, code) if found) or text.splitlines()[0][:200]
    if code and code[1] == "NoSuchBucket":
        return StoreDeniedError("no such bucket (NoSuchBucket)")
    if isinstance(error, FileNotFoundError | exceptions.NotFoundError):
        return ObjectMissingError(f"no object {key}")
    is_read_only = isinstance(error, OSError) and error.errno == errno.EROFS
    if is_read_only or isinstance(
        error, PermissionError | exceptions.PermissionDeniedError | exceptions.UnauthenticatedError
    ):
        return StoreDeniedError(f"access denied ({reason})")
    if code and code[1] in _DENIED_CODES:
        return StoreDeniedError(f"access denied ({reason})")
    if code and code[1] in _TRANSIENT_CODES:
        return StoreUnavailableError(f"the store failed ({reason})")
    if isinstance(error, exceptions.InvalidPathError) or (status and status[1] in _PERMANENT_STATUS):
        return PermanentError(f"the store refuses {key} ({reason})")
    if "169.254.169.254" in text:
        return StoreDeniedError("no credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)")
    return StoreUnavailableError(f"the store failed ({reason})")


def open_store(config: ObjectStoreConfig, home: Path) -> ObjectStore:
    """The configured store. Nothing is sent yet; UserError where the URL or the folder cannot be used."""
    url = config.url or (home / "objects").as_uri()
    try:
        if url.startswith("file://"):
            folder = Path(unquote(url.removeprefix("file://")))
            make_root(folder)
            return ObjectStore(LocalStore(folder), url, folder)
        return ObjectStore(from_url(url, **_remote_options(config, url)), url)
    except (OSError, ValueError, exceptions.BaseError) as error:
        raise UserError(
            f"object_store.url {url}: {str(error).splitlines()[0]}; check the path or bucket name"
        ) from None


def _remote_options(config: ObjectStoreConfig, url: str) -> dict[str, Any]:
    plain_http = (config.endpoint or "").startswith("http://")
    options: dict[str, Any] = {
        "client_options": {
            "timeout": f"{config.timeout // timedelta(milliseconds=1)}ms",
            "connect_timeout": CONNECT_TIMEOUT,
            "allow_http": plain_http,
        },
        "retry_config": RETRIES,
    }
    if config.endpoint:
        options["endpoint"] = config.endpoint
    if url.startswith("s3://"):
        options["region"] = config.region or "us-east-1"
        options["virtual_hosted_style_request"] = config.endpoint is None
    return options
