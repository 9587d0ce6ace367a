"""The application of `offload up`: goes on inserting, so that a newcomer sees the queue fill and drain."""

import itertools
import threading

import psycopg

from offload_pipeline.database.statements import statement
from offload_pipeline.demo.payloads import emails, webhooks
from offload_pipeline.demo.tables import TENANTS, now
from offload_pipeline.pipeline import Pipeline

PAUSE_SECONDS = 0.5
# One round; then the documents are made anew, from another seed.
ROUND = 500


def insert_until(stopped: threading.Event, pipeline: Pipeline) -> int:
    """Inserts a webhook and an e-mail every half second until told to stop; returns the number of rows."""
    inserted = 0
    with pipeline.connect() as connection:
        for seed in itertools.count(int(now().timestamp())):
            hooks = webhooks(ROUND, seed=seed, now=now(), min_bytes=2_000, max_bytes=1_000_000)
            mails = emails(ROUND, seed=seed, now=now(), min_bytes=2_000, max_bytes=200_000)
            for tenant, hook, mail in zip(itertools.cycle(TENANTS), hooks, mails, strict=False):
                if stopped.wait(PAUSE_SECONDS):
                    return inserted
                for name, document in (("insert_activity", hook), ("insert_notice", mail)):
                    try:
                        row = {"tenant": tenant, "kind": document.kind, "payload": document.text}
                        connection.execute(statement("demo/tables", name), row)
                        inserted += 1
                    except psycopg.OperationalError:
                        return inserted
    return inserted
