"""What waits, per tenant: to be copied, to be verified, to be released."""

from datetime import timedelta

import pytest

from offload_pipeline.errors import PermanentError
from offload_pipeline.offload.failures import Failure, record_failures
from offload_pipeline.offload.queue import CopiedTenant, copied_by_tenant, unreleased_by_tenant
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.installation import Installation, installed

MAX_ATTEMPTS = 8
PAYLOAD = large_payload(1000)


def copied(notices: Installation) -> list[CopiedTenant]:
    return copied_by_tenant(notices.connection, notices.table, MAX_ATTEMPTS)


def unreleased(notices: Installation) -> dict[str | None, int]:
    return {one.tenant: one.rows for one in unreleased_by_tenant(notices.connection, notices.table, MAX_ATTEMPTS)}


@pytest.mark.both_servers
def test_copies_are_counted_by_tenant_and_by_what_they_wait_for(notices: Installation) -> None:
    notices.insert([PAYLOAD] * 3)
    notices.insert([PAYLOAD] * 2, tenant="bolt")
    assert copied(notices) == []
    notices.copy()
    assert copied(notices) == [CopiedTenant("acme", 3, 3 * len(PAYLOAD), 0, 0)]
    notices.verify()
    notices.insert([PAYLOAD])
    notices.copy()
    notices.copy("bolt")
    found = {one.tenant: (one.rows, one.rows_verified, one.rows_releasable) for one in copied(notices)}
    assert found == {"acme": (4, 3, 3), "bolt": (2, 0, 0)}
    assert unreleased(notices) == {"acme": 4, "bolt": 2}


@pytest.mark.parametrize(("after_copy", "delay"), [("keep", timedelta(0)), ("clear", timedelta(hours=1))])
def test_copies_that_are_to_stay_in_their_rows_do_not_wait(
    database_url: str, local_store_url: str, after_copy: str, delay: timedelta
) -> None:
    with installed(database_url, local_store_url, after_copy=after_copy, release_delay=delay) as notices:
        notices.insert([PAYLOAD])
        notices.copy()
        notices.verify()
        assert copied(notices) == [CopiedTenant("acme", 1, len(PAYLOAD), 1, 0)]
        assert unreleased(notices) == {}


def test_a_copy_that_release_has_given_up_does_not_wait_until_its_failure_is_closed(notices: Installation) -> None:
    key, _ = notices.insert([PAYLOAD] * 2)
    notices.copy()
    notices.verify()
    failure = Failure((str(key),), None, PermanentError("a trigger of the table"))
    record_failures(notices.connection, notices.partition(), "release", [failure])
    assert [(one.rows_verified, one.rows_releasable) for one in copied(notices)] == [(2, 1)]
    assert unreleased(notices) == {"acme": 1}
    notices.execute("UPDATE payload_offload_failures SET resolved_at = now()")
    assert unreleased(notices) == {"acme": 2}


def test_a_table_of_one_tenant_is_counted_too(database_url: str, local_store_url: str) -> None:
    with installed(database_url, local_store_url, tenant_column=None) as notices:
        notices.insert([PAYLOAD])
        notices.copy()
        notices.verify()
        assert copied(notices) == [CopiedTenant("acme", 1, len(PAYLOAD), 1, 1)]
