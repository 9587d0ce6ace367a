"""`offload demo` and `offload up`: everything embedded, to see the whole thing work before pointing it anywhere."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from offload_pipeline.cli.exit_codes import DONE, UNSOUND
from offload_pipeline.cli.options import JsonOption
from offload_pipeline.cli.output import Output, format_bytes, format_rows

if TYPE_CHECKING:
    from offload_pipeline.demo.tables import Weight
    from offload_pipeline.pipeline import Pipeline
    from offload_pipeline.storage.seaweedfs import SeaweedFS

DEFAULT_PORT = 3000
REPORT_SECONDS = 5

StoreOption = Annotated[
    Literal["local", "s3"], typer.Option("--store", help="Where objects go: a folder, or a SeaweedFS S3 server.")
]
PayloadsOption = Annotated[
    Path | None,
    typer.Option("--payloads", metavar="FILE", help="Real documents instead, one a line: FILE.jsonl or FILE.jsonl.gz."),
]


def register(app: typer.Typer) -> None:
    """Adds the commands of this group."""
    app.command()(demo)
    app.command()(up)


def demo(store: StoreOption = "local", payloads: PayloadsOption = None, as_json: JsonOption = False) -> int:
    """Offload four example tables, embedded: install, copy, verify, release, and read one payload back."""
    output = Output(as_json=as_json)
    with _entered(store) as pipeline:
        return _demo(output, pipeline, payloads)


def up(
    store: StoreOption = "local",
    payloads: PayloadsOption = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Of the Dagster UI; 0 takes a free one.")
    ] = DEFAULT_PORT,
    as_json: JsonOption = False,
) -> int:
    """Open the Dagster UI on the demo, its sensor on, while a generator goes on inserting. Ctrl-C ends it."""
    from offload_pipeline.config import home
    from offload_pipeline.demo.generator import insert_until
    from offload_pipeline.demo.tables import is_built
    from offload_pipeline.demo.ui import dagster_ui, require_free

    output = Output(as_json=as_json)
    require_free(port)
    stopped = threading.Event()
    with _entered(store) as pipeline, _stopping_on_signals(stopped):
        if payloads is not None or not is_built(pipeline):
            _build(output, pipeline, payloads)
        output.line("starting the Dagster UI …")
        log_file = home() / "dagster" / "dagster-dev.log"
        with dagster_ui({}, port, log_file) as address:
            output.line(f"Dagster UI: {address} (its log: {log_file}). Ctrl-C ends everything.")
            output.document({"ui": address, "log": str(log_file)})
            writer = threading.Thread(target=insert_until, args=(stopped, pipeline), name="generator")
            writer.start()
            try:
                _report_until(stopped, output, pipeline)
            finally:
                stopped.set()
                writer.join()
        output.line("stopped; the data stays in " + str(home()))
    return DONE


@contextlib.contextmanager
def _entered(store: str) -> Iterator["Pipeline"]:
    """The demo's pipeline, in its own environment, whatever database the caller's names."""
    from offload_pipeline.config import home
    from offload_pipeline.demo.environment import demo_environment, enter
    from offload_pipeline.pipeline import open_pipeline

    with _object_server(store) as s3:
        enter(demo_environment(home(), s3))
        yield open_pipeline()


@contextlib.contextmanager
def _object_server(store: str) -> Iterator["SeaweedFS | None"]:
    if store == "local":
        yield None
        return
    from offload_pipeline.config import home
    from offload_pipeline.storage.seaweedfs import SeaweedFS

    with SeaweedFS(home() / "seaweedfs") as server:
        yield server


def _build(output: Output, pipeline: "Pipeline", payloads: Path | None) -> None:
    from offload_pipeline.demo.tables import fill, make_documents, now, rebuild

    started = time.monotonic()
    documents = make_documents(payloads, now())
    rebuild(pipeline)
    rows = sum(fill(pipeline, table, of_table) for table, of_table in documents.items())
    output.line(f"made {format_rows(rows)} in four tables in {time.monotonic() - started:.1f} s, and installed")


def _demo(output: Output, pipeline: "Pipeline", payloads: Path | None) -> int:
    from dagster import DagsterInstance

    from offload_pipeline.demo.jobs import pending_partitions, run_partitions
    from offload_pipeline.demo.tables import weigh

    _build(output, pipeline, payloads)
    started = time.monotonic()
    with pipeline.connect() as connection:
        before = weigh(connection, pipeline.tables(connection))
    runs = []
    with DagsterInstance.get() as instance:
        pending = pending_partitions(pipeline, instance)
        with output.progress("offload_job on each partition", len(pending)) as advance:
            for run in run_partitions(pipeline, instance, pending):
                runs.append(run)
                advance(1, 0)
    seconds = time.monotonic() - started
    with pipeline.connect() as connection:
        connection.execute("VACUUM (ANALYZE)")
        after = weigh(connection, pipeline.tables(connection))
    failed = [run.partition for run in runs if not run.succeeded]
    verified, read = sum(run.rows_verified for run in runs), sum(run.rows_read_whole for run in runs)
    output.line(f"ran offload_job on {len(runs)} partitions (table × tenant) in {seconds:.1f} s\n")
    _show_weights(output, before, after)
    freed = sum(
        one.payload_bytes_in_rows - other.payload_bytes_in_rows for one, other in zip(before, after, strict=True)
    )
    output.line(f"\nfreed: {format_bytes(freed)} of payload in rows. VACUUM lets new rows reuse that space;")
    output.line("       a relation itself shrinks only where the pages at its end are free, as in notices.")
    output.line(f"verified: {verified:,} objects in the store, {read:,} of them read back whole and hashed")
    for partition in failed:
        output.line(f"failed: {partition}; look at its run: offload up", "red")
    sample = read_one_back(output, pipeline)
    output.document({
        "tables": [{"before": vars(one), "after": vars(other)} for one, other in zip(before, after, strict=True)],
        "partitions": len(runs), "failed": failed, "rows_verified": verified, "rows_read_whole": read,
        "seconds": round(seconds, 1), "read_back": sample,
    })  # fmt: skip
    return UNSOUND if failed else DONE


def _show_weights(output: Output, before: list["Weight"], after: list["Weight"]) -> None:
    from rich.table import Table

    columns = ("table", "rows", "moved", "payload in rows", "now", "relation", "now")
    shown = Table(
        *columns,
        box=None,
        pad_edge=False,
        title="What the database weighed before, and weighs now",
        title_justify="left",
    )
    for column in shown.columns[1:]:
        column.justify = "right"
    for one, other in zip(before, after, strict=True):
        shown.add_row(
            one.table, f"{one.rows:,}", f"{other.rows_stored:,}",
            format_bytes(one.payload_bytes_in_rows), format_bytes(other.payload_bytes_in_rows),
            format_bytes(one.relation_bytes), format_bytes(other.relation_bytes),
        )  # fmt: skip
    output.show(shown)


def read_one_back(output: Output, pipeline: "Pipeline") -> dict[str, Any] | None:
    """Gets the largest payload in storage and says how, as a command where that would find it afterwards."""
    from offload_pipeline.demo.tables import largest_stored_key
    from offload_pipeline.offload.reader import PayloadReader

    with pipeline.connect() as connection, PayloadReader(pipeline) as reader:
        for table in pipeline.tables(connection):
            if key := largest_stored_key(connection, table):
                found = reader.get(table.name, key)
                size = format_bytes(len(found.payload or b""))
                # The demo's S3 server ends with the demo; a command would not find it.
                command = "offload get " if pipeline.store.url.startswith("file:") else ""
                output.line(f"read back: {command}{table.name} {key}")
                output.line(f"           {size} from the {found.source}, SHA-256 {found.sha256}")
                return {"table": table.name, "primary_key": key, "sha256": found.sha256}
    output.line("nothing was large enough to move")
    return None


@contextlib.contextmanager
def _stopping_on_signals(stopped: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM end the loop in order, so that every child is stopped."""
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report_until(stopped: threading.Event, output: Output, pipeline: "Pipeline") -> None:
    while not stopped.wait(REPORT_SECONDS):
        with pipeline.connect() as connection:
            found = {one.name: pipeline.pending(connection, one) for one in pipeline.tables(connection)}
        waiting = {name: sum(tenant.rows for tenant in queue) for name, queue in found.items()}
        output.line("pending: " + ", ".join(f"{name} {rows:,}" for name, rows in waiting.items()))
