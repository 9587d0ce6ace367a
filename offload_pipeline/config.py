"""`offload.yaml` as frozen models. Reading it touches neither the database nor the network."""

import difflib
import os
import re
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import psycopg
import yaml
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from offload_pipeline.errors import UserError
from offload_pipeline.storage.keys import DEFAULT_TEMPLATE, check_template

CONFIG_VARIABLE = "OFFLOAD_CONFIG"
HOME_VARIABLE = "OFFLOAD_HOME"
DATABASE_VARIABLES = ("OFFLOAD_DATABASE_URL", "SUPABASE_DB_URL")
STORE_SCHEMES = ("file", "s3", "gs", "az")
# A table's name becomes a partition key, a key segment and part of `get_<name>_payload` (63 bytes at most).
TABLE_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,49}$"

# PostgreSQL cuts longer names off, and the catalog then knows no such name.
IDENTIFIER_BYTES = 63

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>(?:(?!\$\{)[^}])*))?\}")
# User and password, up to the last @ of a URL.
_CREDENTIALS = re.compile(r"://[^\s:@/]*:\S*@")
_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
_IDENTIFIER = re.compile(r'\s*(?:"(?P<quoted>(?:[^"]|"")+)"|(?P<plain>[^\W\d][\w$]*))\s*')
_DURATION_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*")
_DURATION_UNITS = {
    "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600,
    "d": 86400, "day": 86400, "w": 604800, "week": 604800,
}  # fmt: skip


def parse_duration(value: object) -> object:
    """`0s`, `90 days`, `1h 30m` as a timedelta; anything else is left for Pydantic to refuse or accept."""
    if not isinstance(value, str):
        return value
    parts = _DURATION_PART.findall(value.lower())
    if not parts or _DURATION_PART.sub("", value.lower()):
        raise ValueError(f"is not a duration; write for example 90 days, 5 minutes or 0s, not {value!r}")
    seconds = 0.0
    for number, unit in parts:
        # Only words have a plural: ms would otherwise pass for minutes.
        size = _DURATION_UNITS.get(unit.removesuffix("s") if len(unit) > 2 else unit)
        if size is None:
            raise ValueError(f"has the unknown unit {unit!r}; use seconds, minutes, hours, days or weeks")
        seconds += float(number) * size
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        raise ValueError("is longer than any duration can be; write a shorter one") from None


def parse_identifiers(text: str) -> tuple[str, ...]:
    """`public."TendersCurrent"` as ('public', 'TendersCurrent'); unquoted parts fold to lower case, as in SQL."""
    parts, position = [], 0
    while match := _IDENTIFIER.match(text, position):
        quoted, plain = match["quoted"], match["plain"]
        parts.append(_bounded(quoted.replace('""', '"') if quoted else plain.translate(_ASCII_LOWER)))
        position = match.end()
        if position == len(text):
            return tuple(parts)
        if text[position] != ".":
            break
        position += 1
    raise ValueError(f'is not a table name; write schema.table, or schema."Table" to keep capitals, not {text!r}')


def _bounded(name: str) -> str:
    if len(name.encode()) > IDENTIFIER_BYTES:
        raise ValueError(f"is longer than PostgreSQL's {IDENTIFIER_BYTES} bytes; write the name as \\d shows it")
    return name


def _relation(text: str) -> str:
    if len(parse_identifiers(text)) > 2:
        raise ValueError(f"has more than two parts; write schema.table, not {text}")
    return text


def _column_name(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1].replace('""', '"')
    if not value:
        raise ValueError("is empty; name a column")
    return _bounded(value)


def _unquoted_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Duration = Annotated[timedelta, BeforeValidator(parse_duration), Field(ge=timedelta(0))]
ColumnName = Annotated[str, AfterValidator(_column_name)]
KeyColumns = Annotated[tuple[ColumnName, ...], BeforeValidator(_unquoted_list), Field(min_length=1)]


def _database_url(url: str) -> str:
    """Refuses, without repeating it, what libpq would only refuse in a message that holds half the password."""
    mend = "write postgresql://user@host:5432/database; percent-encode @ : / and # in a password"
    try:
        found = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise ValueError(f"is not a PostgreSQL URL; {mend}") from None
    host, port = str(found.get("host", "")), str(found.get("port", ""))
    if "@" in host or not re.fullmatch(r"[\d,]*", port):
        raise ValueError(f"has an unusable host or port; {mend}")
    return url


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """YAML reads `yes`, `no`, `on` and `off` as booleans, which would pass for 1 and 0."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and annotation is not bool and bool not in get_args(annotation):
            raise ValueError("is read as true or false; write a number, or put the word in quotes")
        return value


class DatabaseConfig(_Section):
    """Where the tables are; `schema` holds the bookkeeping tables. Without `url`: embedded PostgreSQL."""

    url: Annotated[str, AfterValidator(_database_url)] | None = None
    schema_name: Annotated[str, AfterValidator(_bounded)] = Field("public", alias="schema", min_length=1)


class ObjectStoreConfig(_Section):
    """The bucket; credentials come from the environment. Without `url`: a folder."""

    url: str | None = None
    endpoint: str | None = None
    region: str | None = None
    timeout: Duration = timedelta(seconds=60)

    @field_validator("url")
    @classmethod
    def _usable(cls, url: str | None) -> str | None:
        if url is None:
            return None
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in STORE_SCHEMES:
            named = f"has the scheme {scheme!r}" if separator else "has no scheme"
            raise ValueError(f"{named}; write file:///path, s3://bucket, gs://bucket or az://container")
        if scheme == "file" and not rest.startswith("/"):
            raise ValueError("is not absolute; write file:/// and the whole path of the folder")
        if scheme != "file" and "@" in rest:
            raise ValueError("holds credentials; put them in the environment, and only the bucket here")
        return url


class TenantConfig(_Section):
    """Either the column that holds the tenant, or one constant tenant for the whole table."""

    column: ColumnName | None = None
    value: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.column is None) == (self.value is None):
            raise ValueError("needs exactly one of column and value; write {column: tenant_id} or {value: default}")
        return self


class PointerColumns(_Section):
    """The names of the five pointer columns in the table."""

    status: ColumnName = "payload_storage_status"
    size: ColumnName = "payload_bytes"
    object_key: ColumnName = "raw_object_key"
    hash: ColumnName = "payload_hash_sha256"
    stored_at: ColumnName = "payload_stored_at"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = list(self.model_dump().values())
        if len(set(names)) < len(names):
            raise ValueError("names one column twice; give each of the five its own column")
        return self


class TableConfig(_Section):
    """One table: how its rows are found, when a payload moves, and what stays behind."""

    name: str = Field(pattern=TABLE_NAME_PATTERN)
    relation: Annotated[str, AfterValidator(_relation)]
    primary_key: KeyColumns = ("id",)
    tenant: TenantConfig
    payload: ColumnName
    created_at: ColumnName | None = None
    threshold_bytes: int = Field(102_400, ge=0)
    after_copy: Literal["clear", "reference", "keep"] = "clear"
    release_delay: Duration = timedelta(0)
    columns: PointerColumns = PointerColumns()
    key_template: Annotated[str, AfterValidator(check_template)] = DEFAULT_TEMPLATE
    object_retention: Duration | None = None
    max_object_bytes: int | None = Field(None, gt=0)

    @property
    def schema_and_name(self) -> tuple[str, str]:
        """The relation as catalog names; `public` where no schema was written."""
        parts = parse_identifiers(self.relation)
        return (parts[0], parts[1]) if len(parts) == 2 else ("public", parts[0])

    @model_validator(mode="after")
    def _what_is_kept_does_not_expire(self) -> Self:
        if self.object_retention is not None and self.after_copy == "keep":
            raise ValueError("has object_retention with after_copy: keep; its payloads stay in the rows: remove one")
        return self

    @model_validator(mode="after")
    def _columns_do_not_overlap(self) -> Self:
        application = {*self.primary_key, self.payload, self.tenant.column, self.created_at}
        if taken := application & set(self.columns.model_dump().values()):
            raise ValueError(
                f"columns uses the application's own column {sorted(map(str, taken))[0]!r}; choose another name"
            )
        return self


class OffloadConfig(_Section):
    """How the copier and the queue behave; the defaults suit a small database."""

    compression: Literal["standard", "fast"] = "standard"
    batch_rows: int = Field(400, ge=1, le=1000)
    batch_bytes: int = Field(8 * 1024 * 1024, ge=1)
    batches_in_flight: int = Field(3, ge=1, le=32)
    store_threads: int = Field(16, ge=1, le=256)
    max_attempts: int = Field(8, ge=1)
    max_age_minutes: float = Field(5, ge=0)
    min_pending: int = Field(1000, ge=1)
    max_runs_per_tick: int = Field(10, ge=1)
    warn_pending: int = Field(100, ge=0)
    sensor: Literal["running", "stopped"] = "stopped"


class VerificationConfig(_Section):
    """How many stored payloads a verification pass reads again, beside the check of every new object."""

    sample_rows: int = Field(50, ge=0)


class RetentionConfig(_Section):
    """When objects that no row names any more are deleted; nothing is unless `delete` is switched on.

    `grace` must exceed the database's point-in-time-recovery window. A table of which a larger share of the
    objects than `max_orphan_share` looks orphaned is left alone: more likely the database or the prefix is wrong.
    """

    grace: Duration = Field(timedelta(days=30), ge=timedelta(hours=1))
    max_orphan_share: float = Field(0.05, ge=0, le=1)
    delete: bool = False


class BackPressureConfig(_Section):
    """When work in bulk pauses until the database has caught up; null switches a reason off."""

    max_replica_lag_bytes: int | None = Field(256 * 1024 * 1024, ge=0)
    max_wal_files_waiting: int | None = Field(64, ge=0)
    pause_for_autovacuum: bool = True


class Config(_Section):
    """The whole file."""

    database: DatabaseConfig = DatabaseConfig()
    object_store: ObjectStoreConfig = ObjectStoreConfig()
    tables: tuple[TableConfig, ...] = Field(min_length=1)
    tenant_buckets: int | None = Field(None, ge=1)
    offload: OffloadConfig = OffloadConfig()
    verification: VerificationConfig = VerificationConfig()
    retention: RetentionConfig = RetentionConfig()
    back_pressure: BackPressureConfig = BackPressureConfig()

    _path: Path | None = PrivateAttr(None)

    @property
    def path(self) -> Path | None:
        """The file this was read from; None for a configuration made in code."""
        return self._path

    def read_from(self, path: Path) -> Self:
        """The configuration itself, which now knows its file."""
        self._path = path.absolute()
        return self

    @model_validator(mode="after")
    def _relations_are_distinct(self) -> Self:
        relations = [table.schema_and_name for table in self.tables]
        for table in self.tables:
            if relations.count(table.schema_and_name) > 1:
                raise ValueError(f"tables has two entries for the relation {table.relation}; remove one")
        return self

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [re.sub(r"[.-]", "_", table.name.lower()) for table in self.tables]
        for table, name in zip(self.tables, names, strict=True):
            if names.count(name) > 1:
                raise ValueError(f"tables has two entries that become {name!r} ({table.name}); rename one")
        return self

    @property
    def has_one_table(self) -> bool:
        """Whether there is one table alone, whose functions then have plain names as well."""
        return len(self.tables) == 1

    def table(self, name: str) -> TableConfig:
        """The table of this name, or a one-line error that lists the names."""
        for table in self.tables:
            if table.name == name:
                return table
        names = [table.name for table in self.tables]
        hint = "".join(f"; did you mean {near}?" for near in difflib.get_close_matches(name, names, 1))
        raise UserError(f"no table {name!r} in offload.yaml (it has {', '.join(names)}){hint}")


def home() -> Path:
    """The folder of the embedded database and the local store: `$OFFLOAD_HOME`, else `.offload` here."""
    return Path(os.environ.get(HOME_VARIABLE) or ".offload").absolute()


def config_path() -> Path:
    """`$OFFLOAD_CONFIG`, else `./offload.yaml`, else the packaged demo configuration."""
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    local = Path("offload.yaml")
    return local if local.exists() else packaged_config_path()


def packaged_config_path() -> Path:
    """The demo's configuration."""
    return Path(str(files("offload_pipeline") / "demo" / "offload.yaml"))


def refuse_demo_tables_in_a_named_database() -> None:
    """UserError where the packaged demo configuration would be applied to a database that the environment names."""
    named = next((name for name in DATABASE_VARIABLES if os.environ.get(name)), None)
    if named and not os.environ.get(CONFIG_VARIABLE) and not Path("offload.yaml").exists():
        raise UserError(
            f"{named} is set, and there is no offload.yaml in this folder; "
            f"go to its folder, or name it in {CONFIG_VARIABLE}"
        )


def load_config(path: Path | None = None) -> Config:
    """Reads, expands and checks the file. Raises UserError, one line: file, line, key path, cause, mend."""
    path = path or config_path()
    try:
        return _load(path)
    except UserError as error:
        raise UserError(_CREDENTIALS.sub("://***@", str(error))) from None
    except RecursionError:
        raise UserError(f"{path}: nests without end; remove the anchor that contains itself") from None


def _load(path: Path) -> Config:
    root, document = _parse(path)
    try:
        return Config.model_validate(_with_database_url(_expand(document, ()))).read_from(path)
    except _VariableError as variable:
        keys, problem = variable.keys, str(variable)
    except ValidationError as invalid:
        found = invalid.errors(include_url=False, include_input=False)
        # A misspelt key is also a missing one, and only the former says what to do.
        first = next((error for error in found if error["type"] == "extra_forbidden"), found[0])
        keys, problem = tuple(first["loc"]), _explain(dict(first))
    raise UserError(f"{path}{_line_of(root, keys)}: {_key_path(keys)}{problem}")


def _parse(path: Path) -> tuple[yaml.Node, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_duplicates(path, root)
        document = yaml.safe_load(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; set {CONFIG_VARIABLE} to your offload.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check its permissions and that it is UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{where}: not YAML: {problem}; mend the indentation or quoting there") from None
    except ValueError as error:
        raise UserError(f"{path}: not YAML: {error}; put what looks like a date or number in quotes") from None
    if root is None or not isinstance(document, dict):
        raise UserError(f"{path}: is not a mapping; it needs at least `tables:`")
    return root, document


def _refuse_duplicates(path: Path, root: yaml.Node | None) -> None:
    """YAML's parser would silently keep the last of two equal keys."""
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value]
            for index, (key, value) in enumerate(node.value):
                if key.value in names[:index]:
                    raise UserError(f"{path}:{key.start_mark.line + 1}: {key.value}: is written twice; remove one")
                nodes.append(value)


class _VariableError(Exception):
    def __init__(self, problem: str, keys: tuple[int | str, ...]) -> None:
        super().__init__(problem)
        self.keys = keys


def _expand(value: Any, keys: tuple[int | str, ...]) -> Any:
    """Replaces `${VAR}` and `${VAR:-default}` in every string; what is empty afterwards counts as not written."""
    if isinstance(value, dict):
        return {key: _expand(item, (*keys, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, (*keys, index)) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        found = os.environ.get(name) or match["default"]
        # Unset, these two mean the embedded database; the parts of a URL must be there.
        if found is None and not (keys == ("database", "url") and name in DATABASE_VARIABLES):
            raise _VariableError(
                f"the environment variable {name} is not set; export it, or write ${{{name}:-default}}", keys
            )
        return found or ""

    if "${" in _VARIABLE.sub("", value):
        raise _VariableError("has a ${ that begins no variable; write ${NAME} or ${NAME:-default}, not nested", keys)
    return _VARIABLE.sub(replace, value) or None if "${" in value else value


def _with_database_url(document: dict[str, Any]) -> dict[str, Any]:
    database = document.get("database") or {}
    if not isinstance(database, dict) or database.get("url"):
        return document
    url = next((os.environ[name] for name in DATABASE_VARIABLES if os.environ.get(name)), None)
    return {**document, "database": {**database, "url": url}}


def _key_path(keys: tuple[int | str, ...]) -> str:
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    return f"{path}: " if path else ""


def _line_of(root: yaml.Node | None, keys: tuple[int | str, ...]) -> str:
    """`:12`, the line of the deepest written key on the path."""
    node, line = root, 0
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == key), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
    return f":{line}" if line else ""


_MODELS: dict[str, type[_Section]] = {
    "": Config, "database": DatabaseConfig, "object_store": ObjectStoreConfig, "tables": TableConfig,
    "tenant": TenantConfig, "columns": PointerColumns, "offload": OffloadConfig, "verification": VerificationConfig,
    "retention": RetentionConfig, "back_pressure": BackPressureConfig,
}  # fmt: skip


_EXPLAINED = {
    "missing": "is missing; add it",
    "model_type": "is not a mapping; write its keys below it, indented",
    "model_attributes_type": "is not a mapping; write its keys below it, indented",
    "dict_type": "is not a mapping; write its keys below it, indented",
    "tuple_type": "is not a list; begin each entry with a dash",
    "list_type": "is not a list; begin each entry with a dash",
    "too_short": "is empty; write at least one entry",
    "time_delta_type": "is not a duration; write for example 90 days, 5 minutes or 0s",
    "string_type": "is not text; put it in quotes",
    "string_too_short": "is empty; write a name",
    "string_pattern_mismatch":
        "may hold letters, digits, _ . and - only, 50 at most, and starts with a letter or digit; rename it",
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_from_float"),
        "is not a whole number; write digits alone",
    ),
    **dict.fromkeys(("float_type", "float_parsing"), "is not a number; write digits alone"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "is neither true nor false; write one of them"),
}  # fmt: skip


def _unknown_key(keys: tuple[int | str, ...]) -> str:
    *path, key = keys
    sections = [section for section in Config.model_fields if not path and key in _keys_of(section)]
    if meant := [f"{'tables[0]' if section == 'tables' else section}.{key}" for section in sections]:
        return f"unknown key; did you mean {' or '.join(meant)}?"
    known = _keys_of(next((str(key) for key in reversed(path) if isinstance(key, str)), ""))
    near = difflib.get_close_matches(str(key), known, 1)
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; use one of {', '.join(known)}"


def _keys_of(section: str) -> list[str]:
    return [field.alias or name for name, field in _MODELS.get(section, Config).model_fields.items()]


def _explain(error: dict[str, Any]) -> str:
    """One Pydantic error as cause and mend."""
    context = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(error["loc"])
        case "literal_error":
            return f"is not known; use one of {context['expected'].replace(chr(39), '')}"
        case "value_error":
            return str(context["error"])
        case "greater_than_equal" | "less_than_equal":
            is_lower = error["type"] == "greater_than_equal"
            limit = context["ge" if is_lower else "le"]
            # As Pydantic prints a duration of nothing.
            limit = "0s" if limit == "datetime.timedelta(0)" else limit
            return f"is too {'small' if is_lower else 'large'}; write {limit} or {'more' if is_lower else 'less'}"
        case kind if kind in _EXPLAINED:
            is_size = kind.startswith("int_") and str(error["loc"][-1]).endswith("_bytes")
            return _EXPLAINED[kind] + (", such as 102400 for 100 kB" if is_size else "")
        case _:
            return f"{error['msg'][0].lower()}{error['msg'][1:]}; correct the value"
