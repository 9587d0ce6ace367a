"""However old the planner's statistics are, a batch reads its own rows: the rest of the table costs it nothing."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from offload_pipeline_tests.offload.explaining import ExplainingDatabase
from offload_pipeline_tests.offload.installation import RUN, Installation, installed

pytestmark = pytest.mark.both_servers

# A page each: so many that nobody reads them all instead of looking a batch up.
ROWS = 3000
BATCH_ROWS = 50
# Verification's pages have a thousand rows; lifting holds walks the rows of other tenants too.
MOST_ROWS = 2400
FILL = """
    INSERT INTO {table} (tenant_id, padding, raw_payload)
    SELECT CASE n %% 4 WHEN 0 THEN 'globex' ELSE 'acme' END,
        repeat(md5(n::text), 150),
        jsonb_build_object('n', n, 'text', md5(n::text))
    FROM generate_series(1, %s) AS n
"""
# What the planner knows: nothing, as of columns that were added a moment ago; what was true before the last load; what
# is true.
KNOWN = ("nothing", "an empty table", "the truth")


def look(notices: Installation) -> None:
    notices.execute("VACUUM (ANALYZE) {table}")


@pytest.fixture(params=KNOWN)
def loaded(request: pytest.FixtureRequest, database_url: str, local_store_url: str) -> Iterator[Installation]:
    """A table of old rows and two tenants that the trigger has never seen, and statistics of an earlier time."""
    with installed(database_url, local_store_url, threshold_bytes=10, extra_columns={"padding": "text"}) as notices:
        notices.execute("ALTER TABLE {table} SET (autovacuum_enabled = false, toast.autovacuum_enabled = false)")
        notices.execute("ALTER TABLE {table} ALTER padding SET STORAGE PLAIN")
        notices.execute("ALTER TABLE {table} DISABLE TRIGGER USER")
        if request.param == "an empty table":
            look(notices)
        notices.execute(FILL, ROWS)
        notices.execute("UPDATE {table} SET payload_storage_status = NULL")
        if request.param == "the truth":
            look(notices)
        notices.execute("ALTER TABLE {table} ENABLE TRIGGER USER")
        yield notices


def explained_by(notices: Installation) -> tuple[Installation, ExplainingDatabase]:
    database = ExplainingDatabase(notices.database_url, notices.pipeline.database.schema, '"notices"')
    return replace(notices, pipeline=replace(notices.pipeline, database=database)), database


def assert_batches_read_their_own_rows(database: ExplainingDatabase) -> None:
    assert len({one.statement for one in database.explained}) >= 5
    for one in database.explained:
        assert one.most_rows("notices") <= MOST_ROWS, f"{one.statement}\n{one.plan}"
        assert not one.is_compiled, one.statement


def test_draining_old_rows(loaded: Installation) -> None:
    watched, database = explained_by(loaded)
    drained = watched.pipeline.drain(watched.partition("globex"), RUN, unseen=True, batch_rows=BATCH_ROWS)
    assert drained.released.rows_released == drained.copied.rows_copied >= ROWS // 4
    assert_batches_read_their_own_rows(database)


def test_a_queue_that_filled_since_is_drained_verified_whole_restored_and_moved_again(loaded: Installation) -> None:
    loaded.execute("UPDATE {table} SET raw_payload = raw_payload || '{{\"is\": \"new\"}}' WHERE tenant_id = 'globex'")
    watched, database = explained_by(loaded)
    partition, pipeline = watched.partition("globex"), watched.pipeline
    rows = pipeline.drain(partition, RUN, batch_rows=BATCH_ROWS).released.rows_released
    assert rows >= ROWS // 4
    assert pipeline.verify(partition, RUN, full=True).rows_read == rows
    assert pipeline.restore(partition, RUN).rows_restored == rows
    assert pipeline.lift_holds(partition, RUN).rows == rows
    assert_batches_read_their_own_rows(database)
