"""What can go wrong, sorted by who can mend it: the user, time, or nobody. The message is the docstring's promise."""


class OffloadError(Exception):
    """Any error this project raises on purpose; its text is one line that a user can act on."""


class UserError(OffloadError):
    """The configuration, the environment or the command is wrong; the text names the cause and the mend."""


class TransientError(OffloadError):
    """It may pass: a time-out, a refused connection, a full disk, an object that read back differently."""


class PermanentError(OffloadError):
    """Trying again will give the same answer: a payload over the bucket's limit, a permission, a missing object."""


class DatabaseUnreachableError(UserError, TransientError):
    """No server answers there: a mistake in the URL, or an outage that passes."""


class StoreUnavailableError(TransientError):
    """The object store did not answer, or answered with an error that may pass."""


class ReadBackMismatchError(StoreUnavailableError):
    """The store gave back other bytes than were sent; nothing was recorded. The store's fault, not the row's."""


class ObjectMissingError(PermanentError):
    """No object stands under this key."""


class ObjectDamagedError(PermanentError):
    """An object stands under this key, but it is not the payload that the row names."""


class StoreDeniedError(PermanentError):
    """The store refuses these credentials or this request."""


class StoreChangedError(PermanentError):
    """The partition's objects are in another store than the one that is configured now."""


class PayloadTooLargeError(PermanentError):
    """The payload is larger than `max_object_bytes`; it stays in the row."""


class RowNotFoundError(PermanentError):
    """The table has no row with this primary key."""


class PayloadExpiredError(PermanentError):
    """The payload's retention is over, and it was given up."""


class PayloadInvalidError(PermanentError):
    """PostgreSQL would not take this payload for its column, or it has no JSON form; nothing was stored."""


class NotInStoreError(PermanentError):
    """The payload is in its row; no object stands for it."""


class PayloadBesidePointerError(PermanentError):
    """The row is in storage and holds another payload all the same; nothing takes that away before somebody chose."""


class ReleaseUndoneError(TransientError):
    """A trigger of the table turned the released row into something else; rolled back, until that is mended."""


class RestoreUndoneError(TransientError):
    """A trigger of the table turned the restored row into something else; rolled back, until that is mended."""


class ExpiryUndoneError(TransientError):
    """A trigger of the table gave an expired row its pointer back; rolled back, until that is mended."""
