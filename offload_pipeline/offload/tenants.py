"""Tenant ids as Dagster partition keys: validated slugs, since raw ids may hold anything."""

import hashlib
import re

# What Dagster, URLs and file names all take; longer or other ids get a hash.
PARTITION_KEY = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_HASH_DIGITS = 12
_ENDS_LIKE_A_HASH = re.compile(r".*-[0-9a-f]{12}")
_BUCKET = re.compile(r"bucket-\d+")


def partition_key(tenant: str, buckets: int | None = None) -> str:
    """The tenant's partition key: the id itself where it is a slug, else a slug with a short hash of the id.

    With `buckets`, the bucket that holds the tenant. An id that already looks hashed is hashed as well, so that
    no id can pose as another. Should two ids still meet in one key, they share a partition, never each other's rows.
    """
    digest = hashlib.sha256(tenant.encode()).hexdigest()
    if buckets:
        return f"bucket-{int(digest[:8], 16) % buckets:0{len(str(buckets - 1))}d}"
    if PARTITION_KEY.fullmatch(tenant) and not _ENDS_LIKE_A_HASH.fullmatch(tenant) and not _BUCKET.fullmatch(tenant):
        return tenant
    slug = re.sub(r"[^a-z0-9_]+", "-", tenant.lower()).strip("-_")[: 62 - _HASH_DIGITS] or "tenant"
    return f"{slug}-{digest[:_HASH_DIGITS]}"
