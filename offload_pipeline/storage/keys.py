"""Object keys: one safe, injective path segment for each of tenant, table and primary key."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from urllib.parse import quote, unquote

DEFAULT_TEMPLATE = "{tenant}/{table}/{primary_key}/{sha256}.json.gz"
TEMPLATE_FIELDS = ("tenant", "table", "primary_key", "sha256")
# One path component of a file system holds 255 bytes; a whole S3 key 1024.
MAX_SEGMENT_BYTES = 255
_PREFIX_BYTES = 150
# Percent-encodings of characters that are never encoded: they can stand for what has no encoding of its own.
_EMPTY = "%5F"
_SHORTENED = "%7E"
_DOTS = {".": "%2E", "..": "%2E%2E"}
# What `encode_segment` gives, and what stands for {sha256}.
_SEGMENT = r"(?:[A-Za-z0-9_.~,-]|%[0-9A-F]{2})+"
_SHA256 = r"[0-9a-f]{64}"


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


def decode_segment(segment: str) -> tuple[str, ...] | None:
    """The parts that `encode_segment` made this of; None for what it shortened, or never made."""
    try:
        parts = tuple("" if part == _EMPTY else unquote(part, errors="strict") for part in segment.split(","))
    except UnicodeDecodeError:
        return None
    return parts if encode_segment(parts) == segment else None


@dataclass(frozen=True)
class KeyMatch:
    """A key that a template may have made, and the primary key in it, if that can be told."""

    primary_key: tuple[str, ...] | None


class KeyPattern:
    """A table's template turned around: which keys it may have made, for any tenant or for one."""

    def __init__(self, template: str, table: str, tenant: str | None = None) -> None:
        self._known = {"table": encode_segment([table])}
        if tenant is not None:
            self._known["tenant"] = encode_segment([tenant])
        self._template = template
        self._expression = re.compile(self._pattern(template))

    def match(self, key: str) -> KeyMatch | None:
        """None for a key that the template never makes."""
        found = self._expression.fullmatch(key)
        if found is None:
            return None
        segment = found.groupdict().get("primary_key")
        return KeyMatch(decode_segment(segment) if segment is not None else None)

    @property
    def prefix(self) -> str:
        """The longest beginning that all keys share, in whole path segments: what a listing can be narrowed to."""
        beginning = ""
        for literal, field, _, _ in Formatter().parse(self._template):
            beginning += literal
            if field is not None and field not in self._known:
                break
            beginning += self._known[field] if field is not None else ""
        return beginning[: beginning.rfind("/") + 1]

    @property
    def tells_tenants_apart(self) -> bool:
        """Whether no two tenants can share a key: {tenant} has a path segment without another field."""
        return any(
            [field for _, field, _, _ in Formatter().parse(segment) if field] == ["tenant"]
            for segment in self._template.split("/")
        )

    def _pattern(self, template: str) -> str:
        pattern, seen = "", set()
        for literal, field, _, _ in Formatter().parse(template):
            pattern += re.escape(literal)
            if field is None:
                continue
            if field in self._known:
                pattern += re.escape(self._known[field])
            elif field in seen:
                pattern += f"(?P={field})"
            else:
                pattern += f"(?P<{field}>{_SHA256 if field == 'sha256' else _SEGMENT})"
                seen.add(field)
        return pattern
