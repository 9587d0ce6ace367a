"""Partitions: table (static, from offload.yaml) × tenant (dynamic, found by the sensor); keys read `table|tenant`."""

from dagster import (
    DynamicPartitionsDefinition,
    MultiPartitionKey,
    MultiPartitionsDefinition,
    StaticPartitionsDefinition,
)

from offload_pipeline.config import Config

TENANT_PARTITIONS = "tenant"


def table_tenant_partitions(config: Config) -> MultiPartitionsDefinition:
    """The partitions of every asset that works per table and tenant."""
    return MultiPartitionsDefinition({
        "table": StaticPartitionsDefinition([table.name for table in config.tables]),
        "tenant": DynamicPartitionsDefinition(name=TENANT_PARTITIONS),
    })  # fmt: skip


def key_of(table: str, tenant_key: str) -> MultiPartitionKey:
    """The partition of a table and a tenant's slug (see `offload.tenants.partition_key`)."""
    return MultiPartitionKey({"table": table, "tenant": tenant_key})


def split_key(partition_key: str) -> tuple[str, str]:
    """Table and tenant slug; neither can hold the separator."""
    table, _, tenant = partition_key.partition("|")
    return table, tenant
