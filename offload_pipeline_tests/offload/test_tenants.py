"""Partition keys: what Dagster, URLs and file names take, and never the same key for two tenants."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_pipeline.offload.tenants import partition_key

SLUG = re.compile(r"^[a-z0-9][a-z0-9_-]{0,62}\Z")

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
tenants = text | st.text(st.sampled_from("abAB09-_ |/.,é"), max_size=70) | st.from_regex(SLUG)


@settings(deadline=None)
@given(tenants)
def test_every_partition_key_is_a_slug(tenant: str) -> None:
    assert SLUG.match(partition_key(tenant))


@pytest.mark.parametrize("tenant", ["acme", "t1", "a_b-c", "0", "x" * 63, "bucket", "acme-inc"])
def test_a_tenant_that_is_a_slug_is_its_own_partition_key(tenant: str) -> None:
    assert partition_key(tenant) == tenant


@pytest.mark.parametrize(
    "tenant",
    ["", ".", "..", "../x", "a/b", "a|b", "Acme", "Zoë, Inc.", "x" * 64, "😀" * 200, "-a", "_a", "a\n", "bucket-01"],
)
def test_any_other_tenant_gets_a_slug_with_a_hash(tenant: str) -> None:
    key = partition_key(tenant)
    assert SLUG.match(key)
    assert re.search(r"-[0-9a-f]{12}$", key)
    assert key != tenant


def test_a_readable_part_of_the_tenant_stays() -> None:
    assert partition_key("Zoë, Inc.").startswith("zo-inc-")


@settings(deadline=None)
@given(st.lists(tenants, min_size=2, max_size=8, unique=True))
def test_no_two_tenants_share_a_partition_key(ids: list[str]) -> None:
    assert len({partition_key(tenant) for tenant in ids}) == len(ids)


@settings(deadline=None)
@given(tenants)
def test_a_tenant_cannot_pose_as_another_by_its_partition_key(tenant: str) -> None:
    key = partition_key(tenant)
    assert key == tenant or partition_key(key) != key


@settings(deadline=None)
@given(tenants, st.integers(1, 1000))
def test_a_bucket_is_a_slug_and_always_the_same(tenant: str, buckets: int) -> None:
    key = partition_key(tenant, buckets)
    assert SLUG.match(key)
    assert 0 <= int(key.removeprefix("bucket-")) < buckets
    assert key == partition_key(tenant, buckets)


def test_buckets_sort_by_number_and_share_the_tenants_evenly() -> None:
    found = Counter(partition_key(f"tenant-{number}", 64) for number in range(6400))
    assert sorted(found) == [f"bucket-{number:02d}" for number in range(64)]
    assert 50 < min(found.values()) <= max(found.values()) < 160
