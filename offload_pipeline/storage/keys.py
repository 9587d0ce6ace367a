"""Object keys: one safe, injective path segment for each of tenant, table and primary key."""

import hashlib
import re
from collections.abc import Sequence
from string import Formatter
from urllib.parse import quote

DEFAULT_TEMPLATE = "{tenant}/{table}/{primary_key}/{sha256}.json.gz"
TEMPLATE_FIELDS = ("tenant", "table", "primary_key", "sha256")
# One path component of a file system holds 255 bytes; a whole S3 key 1024.
MAX_SEGMENT_BYTES = 255
_PREFIX_BYTES = 150
# Percent-encodings of characters that are never encoded: they can stand for what has no encoding of its own.
_EMPTY = "%5F"
_SHORTENED = "%7E"
_DOTS = {".": "%2E", "..": "%2E%2E"}


def check_template(template: str) -> str:
    """The template itself, or ValueError saying what it lacks."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"is not a template ({error}); write for example {DEFAULT_TEMPLATE}") from None
    fields = [field for _, field, _, _ in parsed if field is not None]
    if any(specification or conversion for _, _, specification, conversion in parsed):
        raise ValueError("changes a field by a ! or : in its braces; write the bare name, for example {sha256}")
    if unknown := [field for field in fields if field not in TEMPLATE_FIELDS]:
        raise ValueError(f"has the unknown field {{{unknown[0]}}}; use {', '.join(TEMPLATE_FIELDS)}")
    if "sha256" not in fields:
        raise ValueError("lacks {sha256}; without it a new payload would overwrite the old one: put it back")
    literal = "".join(text for text, _, _, _ in parsed)
    if (
        template.startswith("/")
        or not re.fullmatch(r"[A-Za-z0-9_.=/-]*", literal)
        or {".", "..", ""} & set(template.split("/"))
    ):
        raise ValueError("must be a relative path of letters, digits, _ . = - and fields; remove the rest")
    return template


def encode_segment(parts: Sequence[str]) -> str:
    """One path segment for a tenant or a (composite) primary key: percent-encoded, `,` between the parts.

    Different inputs give different segments. What would be longer than a file name can be keeps its
    beginning and ends in the SHA-256 of the whole; the empty text becomes an escape nothing else becomes.
    """
    encoded = ",".join(_DOTS.get(part) or quote(part, safe="") or _EMPTY for part in parts)
    if len(encoded) <= MAX_SEGMENT_BYTES:
        return encoded
    prefix = re.sub(r"%.?$", "", encoded[:_PREFIX_BYTES])
    return f"{prefix}{_SHORTENED}{hashlib.sha256(encoded.encode()).hexdigest()}"


def object_key(template: str, *, tenant: str, table: str, primary_key: Sequence[str], sha256: str) -> str:
    """The object key of one payload."""
    return template.format(
        tenant=encode_segment([tenant]),
        table=encode_segment([table]),
        primary_key=encode_segment(primary_key),
        sha256=sha256,
    )
