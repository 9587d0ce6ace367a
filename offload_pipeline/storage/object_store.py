"""The object store as the protocol needs it: put, get, look at the end, and errors sorted by whether they may pass."""

import contextlib
import errno
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
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
from offload_pipeline.storage.durability import is_leftover, make_root, put_durably

# Plain clients that honour Content-Encoding then see JSON.
ATTRIBUTES = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
CONNECT_TIMEOUT = "5s"
# The client library retries 5xx and broken connections itself; what still fails is retried a pass later.
RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
PROBE_KEY = ".offload/probe"
# What S3, GCS and Azure all grant at most.
LONGEST_URL_LIFE = timedelta(days=7)
# What S3 gives per request.
LISTED_PER_PAGE = 1000
# RFC 1952: the last eight bytes of a gzip member are CRC32 and size modulo 2**32 of what was packed.
TRAILER_BYTES = 8
SMALLEST_GZIP_BYTES = 18

# How the library says, in the middle of a listing, that somebody else's object has a name it cannot express.
_UNNAMEABLE = "Encountered object with invalid path"
_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
# Without a status there was no whole answer; the library says in its debug output alone what came instead.
_NO_ANSWER = re.compile(r"HttpError \{\s*kind: (\w+)")
_SERVER = re.compile(r"\w+://[^/\s]+")
_HOW_TO_BE_LET_IN = "check the bucket's name, the credentials in the environment, and that they may put and get objects"
# Answers that will not change however often the same request is sent.
_PERMANENT_STATUS = {"400", "405", "411", "413", "414", "416", "501"}
# S3 answers 400 also for what is no fault of the object: a slow or cut upload passes, and credentials or a region
# that do not fit concern every row alike.
_TRANSIENT_CODES = {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}
_DENIED_STATUS = {"401", "403"}
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


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing has it: the bytes of the packed object, and by the store's own clock its last PUT."""

    key: str
    bytes: int
    last_modified: datetime


class ObjectStore:
    """One bucket or folder. Every method raises only errors of `offload_pipeline.errors`."""

    def __init__(self, store: Any, url: str, folder: Path | None = None, *, deleting: Any = None) -> None:
        """`deleting` is the client for deletions: one that sends each request once."""
        self._store, self.url, self._folder, self._deleting = store, url, folder, deleting or store

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
            except (exceptions.GenericError, exceptions.NotSupportedError) as error:
                if _is_outage(error):
                    raise
                # Azure knows no suffix ranges, and an empty object has no range at all.
                size = obstore.head(self._store, key)["size"]
                start = max(0, size - TRAILER_BYTES)
                end = obstore.get_range(self._store, key, start=start, end=size).to_bytes() if size else b""
        if size < SMALLEST_GZIP_BYTES or len(end) != TRAILER_BYTES:
            raise ObjectDamagedError(f"{key} is {size} bytes long: truncated")
        crc32, payload_bytes = struct.unpack("<II", end)
        return Trailer(size, crc32, payload_bytes)

    def delete(self, key: str) -> None:
        """Removes the object; one that is not there is no error.

        Asked once: after an answer, no earlier request can still be on its way. After StoreUnavailableError it can.
        """
        with contextlib.suppress(ObjectMissingError), self._translated(key):
            obstore.delete(self._deleting, key)

    def head(self, key: str) -> StoredObject:
        """Size and age of an object without its bytes. Raises ObjectMissingError."""
        with self._translated(key):
            found = obstore.head(self._store, key)
        return StoredObject(key, found["size"], found["last_modified"])

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Every object under a prefix of whole path segments, in no order, a page in memory at a time.

        Ends only at the end: whatever keeps a page from being read is raised, as by the other methods, and what was
        given until then is not the whole.
        """
        with self._translated(prefix):
            pages = iter(obstore.list(self._store, prefix or None, chunk_size=LISTED_PER_PAGE))
        while True:
            with self._translated(prefix):
                page = next(pages, None)
            if page is None:
                return
            yield from (StoredObject(found["path"], found["size"], found["last_modified"]) for found in page)

    def is_leftover(self, key: str) -> bool:
        """Whether a listed key is no object, but what a process that was killed in `put` left on a local store."""
        return self._folder is not None and is_leftover(key)

    def now(self) -> datetime:
        """The store's own clock, by which alone the age of an object can be told; stores a probe to read it."""
        self.put(PROBE_KEY, b"probe")
        return self.head(PROBE_KEY).last_modified

    def signed_url(self, key: str, expires_in: timedelta) -> str:
        """An address that anybody can GET the object from until then, without credentials; nothing is sent.

        Raises UserError for a folder or a time that no store grants, StoreDeniedError without credentials.
        """
        if self._folder is not None:
            raise UserError(f"{self.url} is a folder, which has no addresses; read the payload instead")
        if not timedelta(seconds=1) <= expires_in <= LONGEST_URL_LIFE:
            hours = f"{expires_in.total_seconds() / 3600:,g}"
            raise UserError(f"an address lasts from one second to 7 days, not {hours} h; give another time")
        with self._translated(key):
            return obstore.sign(self._store, "GET", key, expires_in)

    def check(self) -> None:
        """Stores and reads a probe. Raises UserError in one line where the store cannot be used as configured."""
        try:
            self.put(PROBE_KEY, b"probe")
            if self.get(PROBE_KEY) != b"probe":
                raise UserError(f"{self.url}: the store gave back other bytes than were stored; do not use it")
        except StoreDeniedError as error:
            raise UserError(str(error)) from None
        except ObjectMissingError as error:
            raise UserError(f"{self.url}: {error}; {_HOW_TO_BE_LET_IN}") from None
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
            ours = _as_our_own(error, key)
            if isinstance(ours, StoreDeniedError):
                ours = StoreDeniedError(f"{self.url}: {ours}; {_HOW_TO_BE_LET_IN}")
            raise ours from error


def _as_our_own(error: Exception, key: str) -> OffloadError:
    text = str(error)
    code, status = _CODE.search(text), _STATUS.search(text)
    reason = " ".join(found[1] for found in (status, code) if found) or _why_no_answer(text)
    if code and code[1] == "NoSuchBucket":
        return StoreDeniedError("no such bucket (NoSuchBucket)")
    if isinstance(error, FileNotFoundError | exceptions.NotFoundError):
        return ObjectMissingError(f"no object {key}")
    is_read_only = isinstance(error, OSError) and error.errno == errno.EROFS
    if is_read_only or isinstance(
        error, PermissionError | exceptions.PermissionDeniedError | exceptions.UnauthenticatedError
    ):
        return StoreDeniedError(f"access denied ({reason})")
    # The library tells a denied listing from a failed one by the status alone.
    if (code and code[1] in _DENIED_CODES) or (status and status[1] in _DENIED_STATUS):
        return StoreDeniedError(f"access denied ({reason})")
    if code and code[1] in _TRANSIENT_CODES:
        return StoreUnavailableError(f"the store failed ({reason})")
    if text.startswith(_UNNAMEABLE):
        name = text.splitlines()[0].rpartition(": Error parsing ")[2] or text.splitlines()[0]
        return PermanentError(f"the listing holds a name that is no key ({name[:200]}); move that object elsewhere")
    if isinstance(error, exceptions.InvalidPathError) or (status and status[1] in _PERMANENT_STATUS):
        return PermanentError(f"the store refuses {key} ({reason})")
    if "169.254.169.254" in text:
        return StoreDeniedError("no credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)")
    return StoreUnavailableError(f"the store failed ({reason})")


def _is_outage(error: Exception) -> bool:
    text = str(error)
    status = _STATUS.search(text)
    return _NO_ANSWER.search(text) is not None or (status is not None and status[1].startswith("5"))


def _why_no_answer(text: str) -> str:
    kind, server = _NO_ANSWER.search(text), _SERVER.search(text)
    if not kind:
        return text.splitlines()[0][:200]
    if kind[1] == "Connect" and server:
        return f"no connection to {server[0]}"
    return "no answer in time" if kind[1] == "Timeout" else "the connection broke"


def open_store(config: ObjectStoreConfig, home: Path) -> ObjectStore:
    """The configured store. Nothing is sent yet; UserError where the URL or the folder cannot be used."""
    url = config.url or (home / "objects").as_uri()
    try:
        if url.startswith("file://"):
            folder = Path(unquote(url.removeprefix("file://")))
            make_root(folder)
            return ObjectStore(LocalStore(folder), url, folder)
        options = _remote_options(config, url)
        deleting = from_url(url, **options | {"retry_config": RETRIES | {"max_retries": 0}})
        return ObjectStore(from_url(url, **options), url, deleting=deleting)
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
