"""Templates turned around: which keys a table may have made, and what was put into them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_pipeline.storage.keys import (
    DEFAULT_TEMPLATE,
    KeyMatch,
    KeyPattern,
    decode_segment,
    encode_segment,
    object_key,
)
from offload_pipeline_tests.storage.test_keys import AWKWARD_IDS, SHA256, awkward, parts

TEMPLATES = [
    DEFAULT_TEMPLATE, "{sha256}", "raw/{table}/{primary_key}/{sha256}.json.gz",
    "tenant={tenant}/{primary_key}-{sha256}.gz", "{table}.{tenant}/{sha256}/{primary_key}",
    "{sha256}/{tenant}/{sha256}",
]  # fmt: skip


@settings(deadline=None)
@given(parts)
def test_a_segment_decodes_to_its_parts_unless_it_was_shortened(values: list[str]) -> None:
    segment = encode_segment(values)
    decoded = decode_segment(segment)
    is_whole = "%7E" not in segment
    assert decoded == (tuple(values) if is_whole else None)


@pytest.mark.parametrize(
    "segment", ["", "%", "%2", "%2f", "%FF", "a b", ".", "..", "a,", ",", "~%7E", "%7E", "%41", "%5f", "é", "%ED%A0%80"]
)
def test_what_no_parts_encode_to_is_not_decoded(segment: str) -> None:
    assert decode_segment(segment) is None


@pytest.mark.parametrize("template", TEMPLATES)
@settings(deadline=None)
@given(tenant=awkward, primary_key=parts)
def test_a_pattern_knows_every_key_of_its_template(template: str, tenant: str, primary_key: list[str]) -> None:
    key = object_key(template, tenant=tenant, table="notices", primary_key=primary_key, sha256=SHA256)
    found = KeyPattern(template, "notices").match(key)
    assert found is not None
    assert KeyPattern(template, "notices", tenant).match(key) is not None
    is_told = "{primary_key}" in template and "%7E" not in encode_segment(primary_key)
    assert found.primary_key == (tuple(primary_key) if is_told else None)
    assert key.startswith(KeyPattern(template, "notices", tenant).prefix)


@settings(deadline=None)
@given(st.lists(awkward, min_size=2, max_size=2, unique=True), parts)
def test_a_pattern_of_one_tenant_knows_no_other(tenants: list[str], primary_key: list[str]) -> None:
    mine, other = tenants
    key = object_key(DEFAULT_TEMPLATE, tenant=other, table="notices", primary_key=primary_key, sha256=SHA256)
    assert KeyPattern(DEFAULT_TEMPLATE, "notices", mine).match(key) is None
    assert not key.startswith(KeyPattern(DEFAULT_TEMPLATE, "notices", mine).prefix)


@pytest.mark.parametrize("tenant", AWKWARD_IDS)
def test_a_pattern_knows_no_key_of_another_table(tenant: str) -> None:
    key = object_key(DEFAULT_TEMPLATE, tenant=tenant, table="mails", primary_key=["1"], sha256=SHA256)
    assert KeyPattern(DEFAULT_TEMPLATE, "notices").match(key) is None
    assert KeyPattern(DEFAULT_TEMPLATE, "mails").match(key) == KeyMatch(("1",))


@pytest.mark.parametrize(
    "key",
    [
        f"acme/notices/1/{SHA256}.json.gzx", f"x/acme/notices/1/{SHA256}.json.gz", f"acme/notices/1/{SHA256}Xjson.gz",
        f"acme/notices/1/{SHA256.upper()}.json.gz", f"acme/notices//{SHA256}.json.gz",
        f"acme/notices/1/{SHA256}.json.gz\n", f"ac me/notices/1/{SHA256}.json.gz",
        f"acme/notices/1/{SHA256[1:]}.json.gz", f"acme/notices/1%/{SHA256}.json.gz",
    ],
)  # fmt: skip
def test_what_the_template_never_makes_does_not_match(key: str) -> None:
    assert KeyPattern(DEFAULT_TEMPLATE, "notices").match(key) is None


def test_a_field_written_twice_must_be_the_same_twice() -> None:
    pattern = KeyPattern("{sha256}/{sha256}.gz", "notices")
    assert pattern.match(f"{SHA256}/{SHA256}.gz")
    assert not pattern.match(f"{SHA256}/{'b' * 64}.gz")


@pytest.mark.parametrize(
    ("template", "tenant", "prefix"),
    [
        (DEFAULT_TEMPLATE, None, ""),
        (DEFAULT_TEMPLATE, "acme", "acme/notices/"),
        (DEFAULT_TEMPLATE, "a/b", "a%2Fb/notices/"),
        ("raw/{table}/{tenant}/{sha256}", None, "raw/notices/"),
        ("raw/{table}/{tenant}/{sha256}", "acme", "raw/notices/acme/"),
        ("tenant={tenant}/{sha256}", None, ""),
        ("tenant={tenant}/{sha256}", "acme", "tenant=acme/"),
        ("raw-{sha256}", None, ""),
        ("{table}/x-{sha256}", None, "notices/"),
    ],
)
def test_a_listing_is_narrowed_to_the_segments_that_are_known(template: str, tenant: str | None, prefix: str) -> None:
    assert KeyPattern(template, "notices", tenant).prefix == prefix


@pytest.mark.parametrize(
    ("template", "is_told"),
    [
        (DEFAULT_TEMPLATE, True),
        ("tenant={tenant}/{sha256}", True),
        ("{table}/{sha256}", False),
        ("{tenant}-{primary_key}/{sha256}", False),
        ("{tenant}{primary_key}/{tenant}/{sha256}", True),
    ],
)
def test_tenants_are_told_apart_where_one_has_a_segment_of_its_own(template: str, is_told: bool) -> None:
    assert KeyPattern(template, "notices").tells_tenants_apart is is_told
