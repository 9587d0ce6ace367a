"""Dagster's own storage: PostgreSQL where a database is named for it, else files, so that it loads anywhere."""

import os
from typing import Any

from dagster._core.storage.base_storage import DagsterStorage  # what dagster.yaml's `storage` must give
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage

from offload_pipeline.config import home

DATABASE_VARIABLE = "OFFLOAD_DAGSTER_DATABASE_URL"


class DagsterStorageFromEnvironment(DagsterStorage, ConfigurableClass):
    """The factory that dagster.yaml names: plain `storage: postgres` refuses even to validate without a server."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Nothing to configure beside the environment."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> DagsterStorage:  # type: ignore[override]  # noqa: ARG003 - a factory, by Dagster's protocol
        """PostgreSQL at `$OFFLOAD_DAGSTER_DATABASE_URL`, else SQLite under `.offload/dagster`."""
        if url := os.environ.get(DATABASE_VARIABLE):
            return DagsterPostgresStorage(url, should_autocreate_tables=True, inst_data=inst_data)
        folder = home() / "dagster"
        folder.mkdir(parents=True, exist_ok=True)
        return DagsterSqliteStorage(str(folder), inst_data=inst_data)
