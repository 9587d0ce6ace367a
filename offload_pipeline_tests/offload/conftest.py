"""A table ready to be offloaded, on each kind of store."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from offload_pipeline.config import ObjectStoreConfig, TableConfig
from offload_pipeline.offload.forecast import Forecast
from offload_pipeline.offload.plan import PlanOptions, forecast_table
from offload_pipeline.storage import object_store
from offload_pipeline.storage.object_store import ObjectStore, open_store
from offload_pipeline.storage.seaweedfs import SeaweedFS
from offload_pipeline_tests.factories import make_pipeline
from offload_pipeline_tests.faults.proxy import FaultyProxy
from offload_pipeline_tests.offload.installation import Installation, StoreAddress, installed
from offload_pipeline_tests.offload.population import Forecaster


@pytest.fixture
def s3_store(s3_url: str, seaweedfs: SeaweedFS) -> StoreAddress:
    """A prefix of the test's own on the S3 server."""
    return StoreAddress(s3_url, {"endpoint": seaweedfs.endpoint})


@pytest.fixture(params=["local", "s3"])
def any_store(request: pytest.FixtureRequest) -> StoreAddress:
    """Both kinds of store; the S3 server starts only where it is asked for."""
    if request.param == "s3":
        address: StoreAddress = request.getfixturevalue("s3_store")
        return address
    return StoreAddress(request.getfixturevalue("local_store_url"))


@pytest.fixture
def notices(database_url: str, local_store_url: str) -> Iterator[Installation]:
    """jsonb payloads of every size, cleared after the copy, on a local store."""
    with installed(database_url, local_store_url) as installation:
        yield installation


@pytest.fixture
def proxy(seaweedfs: SeaweedFS) -> Iterator[FaultyProxy]:
    with FaultyProxy(seaweedfs).running() as running:
        yield running


@pytest.fixture
def behind_proxy(database_url: str, s3_url: str, proxy: FaultyProxy) -> Iterator[Installation]:
    """A table whose store is the S3 server behind the proxy, with short time-outs and no retries of its own."""
    retries, object_store.RETRIES = object_store.RETRIES, {"max_retries": 0}
    try:
        address = StoreAddress(s3_url, {"endpoint": proxy.endpoint, "timeout": "1s"})
        with installed(database_url, address) as installation:
            yield installation
    finally:
        object_store.RETRIES = retries


@pytest.fixture
def real_store(s3_url: str, seaweedfs: SeaweedFS) -> ObjectStore:
    """The S3 server itself, past the proxy."""
    return open_store(ObjectStoreConfig(url=s3_url, endpoint=seaweedfs.endpoint), Path())


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    """The application's own, in autocommit."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def forecast(database_url: str, local_store_url: str, connection: psycopg.Connection) -> Forecaster:
    """Forecasts one table from the sample that this seed draws."""

    def of(config: TableConfig, seed: int = 1) -> Forecast:
        pipeline = make_pipeline(database_url, local_store_url, [config])
        options = PlanOptions("standard", pipeline.store.url, 50, seed)
        return forecast_table(pipeline.database, pipeline.inspect(connection, config.name), options)

    return of
