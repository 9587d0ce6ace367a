"""Whose object is it? Listed keys are told apart by the tables' templates; what fits none is somebody else's."""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import Connection

from offload_pipeline.database.connection import transaction
from offload_pipeline.database.statements import statement
from offload_pipeline.database.table import Key, Table, bookkeeping_names
from offload_pipeline.errors import StoreChangedError, UserError
from offload_pipeline.storage.keys import KeyPattern


@dataclass(frozen=True)
class Owned:
    """A listed key of a table, with the primary key in it where that can be told."""

    table: Table
    primary_key: Key | None


class Scope:
    """The tables, or one of them, or one tenant in them: which keys are looked at, and under which prefixes.

    Keys of the other tables are recognised and passed over: they are neither in the scope nor foreign.
    """

    def __init__(self, tables: Sequence[Table], table: str | None = None, tenant: str | None = None) -> None:
        self._patterns = [(one, pattern_of(one)) for one in tables]
        chosen = [one for one in tables if table in (None, one.name)]
        if tenant is not None:
            chosen = [one for one in chosen if one.config.tenant.value in (None, tenant)]
            _refuse_tables_that_cannot_tell(chosen)
        self.tables = chosen
        self._chosen = {one.name: pattern_of(one, tenant) for one in chosen}

    def owner(self, key: str) -> Owned | None:
        """The first table whose template may have made the key; None for a foreign one."""
        for table, pattern in self._patterns:
            if found := pattern.match(key):
                fits = found.primary_key is not None and len(found.primary_key) == len(table.key_columns)
                return Owned(table, found.primary_key if fits else None)
        return None

    def includes(self, owned: Owned, key: str) -> bool:
        """Whether the key is among those that were asked for."""
        pattern = self._chosen.get(owned.table.name)
        return pattern is not None and pattern.match(key) is not None

    @property
    def prefixes(self) -> list[str]:
        """What to list: none of them begins with another."""
        wanted = sorted({pattern.prefix for pattern in self._chosen.values()})
        return [one for one in wanted if not any(one != other and one.startswith(other) for other in wanted)]


def other_stores(connection: Connection, schema: str, store_url: str) -> dict[str, str]:
    """By table name: the other store that some of its objects were copied to."""
    with transaction(connection):
        rows = connection.execute(
            statement("retention/garbage", "other_stores", bookkeeping_names(schema)), {"store_url": store_url}
        ).fetchall()
    return dict(rows)


def require_their_store(connection: Connection, tables: Sequence[Table], store_url: str) -> None:
    """StoreChangedError where one of the tables has objects elsewhere: missing here would not mean gone."""
    elsewhere = other_stores(connection, tables[0].schema, store_url)
    for table in tables:
        if table.name in elsewhere:
            raise StoreChangedError(
                f"{table.name}: its objects are in {elsewhere[table.name]}, object_store.url is {store_url}; "
                "correct the URL"
            )


def pattern_of(table: Table, tenant: str | None = None) -> KeyPattern:
    """The keys of a table; of one tenant in it."""
    one_tenant = table.config.tenant.value if table.config.tenant.value is not None else tenant
    return KeyPattern(table.config.key_template, table.name, one_tenant)


def tells_tenants_apart(table: Table) -> bool:
    """Whether a listed key says which tenant it belongs to."""
    return table.config.tenant.value is not None or pattern_of(table).tells_tenants_apart


def _refuse_tables_that_cannot_tell(tables: Sequence[Table]) -> None:
    for table in tables:
        if not tells_tenants_apart(table):
            raise UserError(
                f"{table.name}: its key_template {table.config.key_template} does not tell tenants apart; "
                "leave the tenant out"
            )
