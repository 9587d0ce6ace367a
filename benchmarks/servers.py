"""The servers that every measurement uses, and the CPU time that each of them takes."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # has no type information
import psycopg

from offload_pipeline.config import Config, ObjectStoreConfig
from offload_pipeline.database.embedded import embedded_url, stop_embedded
from offload_pipeline.install.installer import plan_all, run
from offload_pipeline.pipeline import Pipeline, open_pipeline
from offload_pipeline.storage.object_store import ObjectStore, open_store
from offload_pipeline.storage.seaweedfs import SeaweedFS


@dataclass(frozen=True)
class Servers:
    """The embedded PostgreSQL and a SeaweedFS, both on this machine and with the settings they come with."""

    database_url: str
    s3: SeaweedFS
    home: Path

    def connect(self) -> psycopg.Connection:
        """A new autocommit connection."""
        return psycopg.connect(self.database_url, autocommit=True)

    @property
    def store_address(self) -> dict[str, str]:
        """As in `offload.yaml`."""
        return {"url": f"s3://{self.s3.bucket}", "endpoint": self.s3.endpoint}

    def store(self) -> ObjectStore:
        """The bucket, as the pipeline opens it."""
        return open_store(ObjectStoreConfig.model_validate(self.store_address), self.home)

    def pipeline(self, *tables: dict[str, Any], **sections: Any) -> Pipeline:
        """A pipeline on these tables (as in `offload.yaml`), installed."""
        document = {
            "database": {"url": self.database_url},
            "object_store": self.store_address,
            "tables": tables,
            **sections,
        }
        pipeline = open_pipeline(Config.model_validate(document))
        with pipeline.connect() as connection:
            tables_found = pipeline.inspect_all(connection)
            for step in plan_all(connection, tables_found, pipeline.database.schema, pipeline.store.url):
                run(connection, step)
        return pipeline

    def database_processes(self) -> list[Any]:
        """The server's main process, which connections inherit from, and all that it has now."""
        with self.connect() as connection:
            [(content,)] = connection.execute("SELECT pg_read_file('postmaster.pid')")
        server = psutil.Process(int(content.split()[0]))
        return [server, *server.children()]

    def cpu_seconds(self) -> dict[str, float]:
        """User and system time so far of `us` (this process), `postgres` and `store`."""
        return {
            "us": _cpu_of(psutil.Process()),
            "postgres": sum(map(_cpu_of, self.database_processes())),
            "store": _cpu_of(psutil.Process(self.s3.pid)),
        }


@contextlib.contextmanager
def servers() -> Iterator[Servers]:
    """Started in a temporary folder, stopped and removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="offload-bench-") as folder:
        home = Path(folder)
        home.chmod(0o701)  # as root, PostgreSQL runs as an account of its own
        try:
            with SeaweedFS(home / "objects") as s3:
                os.environ.update(AWS_ACCESS_KEY_ID=s3.access_key, AWS_SECRET_ACCESS_KEY=s3.secret_key)
                yield Servers(embedded_url(home / "postgres"), s3, home)
        finally:
            stop_embedded(home / "postgres")


def _cpu_of(process: Any) -> float:
    with contextlib.suppress(psutil.Error):
        spent = process.cpu_times()
        # PostgreSQL's main process reaps those of its connections that ended.
        return float(spent.user + spent.system + spent.children_user + spent.children_system)
    return 0.0
