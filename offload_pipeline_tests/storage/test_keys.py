"""Object keys: whatever a tenant or a primary key holds, one safe segment that no other shares."""

import hashlib
import re
from pathlib import Path
from urllib.parse import quote, unquote

import obstore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_pipeline.config import ObjectStoreConfig
from offload_pipeline.storage.keys import (
    DEFAULT_TEMPLATE,
    MAX_SEGMENT_BYTES,
    check_template,
    encode_segment,
    object_key,
)
from offload_pipeline.storage.object_store import open_store
from offload_pipeline.storage.seaweedfs import SeaweedFS

MAX_KEY_BYTES = 1024
SHA256 = hashlib.sha256(b"{}").hexdigest()

# PostgreSQL's text holds any Unicode but NUL and lone surrogates.
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
pieces = st.lists(st.sampled_from([*"./\\%,~_|#?* -a", "%2E", "%5F", "%7E"])).map("".join)
awkward = text | pieces | text.map(lambda part: part * 90)
parts = st.lists(awkward, min_size=1, max_size=3)

AWKWARD_IDS = [
    "../x", "../../../../etc/passwd", "/absolute", "a/b", "a\\b", "a|b", "Zoë, Inc.", "z" * 200, "😀" * 200,
    "é" * 255, "", ".", "..", "...", "%2E", "%2e%2e", "%", "%%", "a,b", ",", ".hidden", "trailing ", " leading",
    "trailing.", "~", "~user", "a#1", "a?b", "a*b", "a b", "\t", "\n", "\x01\x1f\x7f", "\u202e", "ﬀ", "NUL",
    "-rf", "a:b", "'", '"', "$HOME", "`id`", "_", "%5F", "%7E",
]  # fmt: skip


def key_of(tenant: str, primary_key: list[str], table: str = "notices") -> str:
    return object_key(DEFAULT_TEMPLATE, tenant=tenant, table=table, primary_key=primary_key, sha256=SHA256)


def test_the_format_is_the_one_that_users_and_auditors_rely_on() -> None:
    assert key_of("acme", ["42"]) == f"acme/notices/42/{SHA256}.json.gz"
    assert key_of("Zoë, Inc.", ["a/b", "2,5"]) == f"Zo%C3%AB%2C%20Inc./notices/a%2Fb,2%2C5/{SHA256}.json.gz"


@pytest.mark.parametrize(
    ("part", "segment"), [(".", "%2E"), ("..", "%2E%2E"), ("...", "..."), ("", "%5F"), ("_", "_"), ("%2E", "%252E")]
)
def test_what_has_no_plain_form_is_an_escape_of_its_own(part: str, segment: str) -> None:
    assert encode_segment([part]) == segment


@settings(deadline=None)
@given(awkward)
def test_an_ordinary_segment_is_the_percent_encoding_of_the_standard_library(value: str) -> None:
    segment = encode_segment([value])
    if value not in ("", ".", "..") and len(quote(value, safe="")) <= MAX_SEGMENT_BYTES:
        assert segment == quote(value, safe="")
        assert unquote(segment) == value


@settings(deadline=None)
@given(awkward, parts, awkward)
def test_a_key_has_four_safe_segments_that_fit_a_file_name(tenant: str, key: list[str], table: str) -> None:
    encoded = key_of(tenant, key, table)
    segments = encoded.split("/")
    assert len(segments) == 4
    assert len(encoded.encode()) <= MAX_KEY_BYTES
    for segment in segments:
        assert 0 < len(segment.encode()) <= MAX_SEGMENT_BYTES
        assert segment not in (".", "..")
        assert segment.isascii()
        assert segment.isprintable()


@settings(deadline=None)
@given(st.lists(st.tuples(awkward, parts, awkward), min_size=2, max_size=6, unique_by=repr))
def test_no_two_rows_share_a_key(rows: list[tuple[str, list[str], str]]) -> None:
    assert len({key_of(*row) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a,b"], ["a", "b"]),
        (["a%2Cb"], ["a", "b"]),
        ([""], ["_"]),
        ([""], ["%5F"]),
        (["", ""], [""]),
        (["."], ["%2E"]),
        (["x" * 300], ["x" * 301]),
        (["x" * 300], [encode_segment(["x" * 300])]),
        (["é" * 100, "a"], ["é" * 100 + ",a"]),
    ],
)
def test_keys_that_look_alike_stay_apart(one: list[str], other: list[str]) -> None:
    assert encode_segment(one) != encode_segment(other)


@pytest.mark.parametrize("offset", range(6))
def test_a_long_segment_keeps_its_beginning_and_cuts_no_escape_in_two(offset: int) -> None:
    whole = "x" * offset + "é" * 100
    beginning, mark, digest = encode_segment([whole]).partition("%7E")
    assert mark
    assert digest == hashlib.sha256(quote(whole, safe="").encode()).hexdigest()
    assert re.fullmatch(r"(?:[^%]|%[0-9A-F]{2}){25,}", beginning)
    assert quote(whole, safe="").startswith(beginning)


def test_awkward_ids_are_stored_inside_the_folder_and_read_back(tmp_path: Path) -> None:
    (tmp_path / "bystander").touch()
    folder = tmp_path / "objects"
    store = open_store(ObjectStoreConfig(url=folder.as_uri()), tmp_path)
    keys = {key_of(tenant, [tenant, "1"]): tenant.encode() for tenant in AWKWARD_IDS}
    assert len(keys) == len(AWKWARD_IDS)
    for key, data in keys.items():
        store.put(key, data)
    for key, data in keys.items():
        assert store.get(key) == data
        assert (folder / key).read_bytes() == data
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == set(keys)
    assert {path.name for path in tmp_path.iterdir()} == {"bystander", "objects"}


def test_awkward_ids_are_stored_and_read_back_on_s3(s3_url: str, seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    store = open_store(ObjectStoreConfig(url=s3_url, endpoint=seaweedfs.endpoint), tmp_path)
    keys = {key_of(tenant, [tenant, "1"]): tenant.encode() for tenant in AWKWARD_IDS}
    for key, data in keys.items():
        store.put(key, data)
    for key, data in keys.items():
        assert store.get(key) == data
    listed = [found["path"] for page in obstore.list(store._store) for found in page]
    assert sorted(listed) == sorted(keys)


@pytest.mark.parametrize(
    "template",
    [
        DEFAULT_TEMPLATE,
        "{sha256}",
        "raw/{table}/{primary_key}/{sha256}.json.gz",
        "tenant={tenant}/{primary_key}-{sha256}.gz",
    ],
)
def test_a_template_of_plain_fields_is_taken(template: str) -> None:
    assert check_template(template) == template


@pytest.mark.parametrize(
    "template",
    [
        "", "{tenant}", "{sha256", "sha256}", "{{sha256}}", "{}{sha256}", "{0}{sha256}", "{sha256!r}", "{sha256:.4}",
        "{sha256[0]}", "{sha256.x}", "/{sha256}", "{tenant}//{sha256}", "../{sha256}", "./{sha256}", "{sha256}/",
        "a b/{sha256}", "%2e%2e/{sha256}", "a\n{sha256}", "{owner}/{sha256}",
    ],
)  # fmt: skip
def test_a_template_that_could_lose_or_leak_objects_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"write|use|put it back|remove"):
        check_template(template)
