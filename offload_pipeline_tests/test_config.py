"""`offload.yaml`: what it can say, and the one line that answers each mistake."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from offload_pipeline.config import (
    CONFIG_VARIABLE,
    DATABASE_VARIABLES,
    Config,
    config_path,
    load_config,
    parse_duration,
    parse_identifiers,
)
from offload_pipeline.errors import UserError

URL = "postgresql://app@db.example/app"
PASSWORD = "hunter2"  # noqa: S105 - opens nothing
TABLE = """tables:
  - name: notices
    relation: public.notices
    tenant: {column: tenant_id}
    payload: raw_payload
"""

Load = Callable[[str], Config]
Refusal = Callable[[str], str]


@pytest.fixture(autouse=True)
def no_database_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DATABASE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_text(text: str) -> Config:
        path = tmp_path / "offload.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path)

    return load_text


@pytest.fixture
def refusal(load: Load, tmp_path: Path) -> Refusal:
    """The message after the file's name; one line, or the test fails."""

    def message_of(text: str) -> str:
        with pytest.raises(UserError) as caught:
            load(text)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(str(tmp_path / "offload.yaml"))
        assert caught.value.__suppress_context__
        return message.removeprefix(str(tmp_path / "offload.yaml"))

    return message_of


def table(*lines: str) -> str:
    """The plain table with further lines."""
    return TABLE + "".join(f"    {line}\n" for line in lines)


# What it can say


def test_a_file_can_be_as_short_as_one_table(load: Load) -> None:
    config = load(TABLE)
    notices = config.tables[0]
    assert config.database.url is None
    assert config.object_store.url is None
    assert notices.primary_key == ("id",)
    assert (notices.threshold_bytes, notices.after_copy) == (102_400, "clear")
    assert set(notices.columns.model_dump().values()) == {
        "payload_storage_status",
        "payload_bytes",
        "raw_object_key",
        "payload_hash_sha256",
        "payload_stored_at",
    }


def test_every_key_of_the_design_is_understood(load: Load) -> None:
    config = load(
        f"""
database: {{url: "{URL}", schema: ops}}
object_store: {{url: s3://civant-payloads, endpoint: "http://127.0.0.1:8333", region: us-east-1}}
tenant_buckets: 64
tables:
  - name: notices
    relation: public."TendersCurrent"
    primary_key: [source, "Notice ID"]
    tenant: {{value: civant_default}}
    payload: raw_payload
    created_at: created_at
    threshold_bytes: 0
    after_copy: reference
    release_delay: 1h 30m
    columns: {{status: s, size: n, object_key: k, hash: h, stored_at: t}}
    object_retention: 90 days
    max_object_bytes: 10000000
"""
    )
    notices = config.table("notices")
    assert (config.database.schema_name, config.tenant_buckets) == ("ops", 64)
    assert notices.schema_and_name == ("public", "TendersCurrent")
    assert notices.primary_key == ("source", "Notice ID")
    assert notices.tenant.value == "civant_default"
    assert (notices.release_delay, notices.object_retention) == (timedelta(minutes=90), timedelta(days=90))
    assert notices.columns.object_key == "k"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Notices", ("notices",)),
        ("public.TendersCurrent", ("public", "tenderscurrent")),
        ('public."TendersCurrent"', ("public", "TendersCurrent")),
        ('"a.b"."c ""d"" %s {e}"', ("a.b", 'c "d" %s {e}')),
        ("_a.b$1", ("_a", "b$1")),
        ("ÉTÉ", ("ÉtÉ",)),  # PostgreSQL folds no letters but ASCII
    ],
)
def test_identifiers_are_read_as_postgresql_reads_them(written: str, meant: tuple[str, ...]) -> None:
    assert parse_identifiers(written) == meant


@pytest.mark.parametrize("written", ["", ".", "a.", ".a", 'a."b', "a b", "1a", 'a.""', "a;b", f'"{"x" * 64}"'])
def test_what_is_no_identifier_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"write|longer"):
        parse_identifiers(written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("0s", 0),
        ("90 days", 7_776_000),
        ("1h 30m", 5400),
        ("1.5h", 5400),
        ("2 Weeks", 1_209_600),
        ("5 min", 300),
    ],
)
def test_durations_are_written_with_units(written: str, seconds: int) -> None:
    assert parse_duration(written) == timedelta(seconds=seconds)


@pytest.mark.parametrize("written", ["", "days", "-5 days", "3 fortnights", "5 days or so", "9999999999 weeks"])
def test_what_is_no_duration_is_refused_with_an_example(written: str, refusal: Refusal) -> None:
    assert refusal(table(f'release_delay: "{written}"')).startswith(":6: tables[0].release_delay: ")


def test_a_configuration_cannot_be_changed(load: Load) -> None:
    config = load(TABLE)
    with pytest.raises(ValidationError, match="frozen"):
        config.tables[0].threshold_bytes = 0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.database.url = URL  # type: ignore[misc]


def test_anchors_and_merge_keys_work(load: Load) -> None:
    config = load(
        """
tables:
  - &notices
    name: notices
    relation: notices
    tenant: {column: tenant_id}
    payload: raw
  - <<: *notices
    name: events
    relation: events
"""
    )
    assert [(found.name, found.relation, found.payload) for found in config.tables] == [
        ("notices", "notices", "raw"),
        ("events", "events", "raw"),
    ]


def test_an_unknown_table_is_answered_with_the_known_ones(load: Load) -> None:
    with pytest.raises(UserError, match=r"no table 'notice' .*it has notices.* did you mean notices\?"):
        load(TABLE).table("notice")


# Which file


def test_the_variable_names_the_file_before_the_folder_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    packaged = config_path()
    assert packaged.parent.name == "demo"
    Path("offload.yaml").touch()
    assert config_path() == Path("offload.yaml")
    monkeypatch.setenv(CONFIG_VARIABLE, "other.yaml")
    assert config_path() == Path("other.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file; set OFFLOAD_CONFIG"), (b"tables: \xff", "cannot be read"), (b"\x00", "not YAML")],
    ids=["missing", "not UTF-8", "binary"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "offload.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read.*directory"):
        load_config(tmp_path)


# Variables


def test_variables_are_replaced_wherever_they_stand(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "payloads")
    monkeypatch.setenv("LIMIT", "5")
    monkeypatch.setenv("TENANT", "007")
    monkeypatch.delenv("REGION", raising=False)
    config = load(
        "object_store: {url: 's3://${BUCKET}/${PREFIX:-a}', region: '${REGION:-}'}\n"
        + table("threshold_bytes: ${LIMIT}").replace("{column: tenant_id}", "{value: '${TENANT}'}")
    )
    assert config.object_store.url == "s3://payloads/a"
    assert config.object_store.region is None
    assert config.tables[0].threshold_bytes == 5
    assert config.tables[0].tenant.value == "007"


def test_an_unset_variable_is_named_with_its_line(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    said = refusal(table("created_at: ${NOT_SET}"))
    assert said == (
        ":6: tables[0].created_at: the environment variable NOT_SET is not set; export it, or write ${NOT_SET:-default}"
    )


@pytest.mark.parametrize("written", ["${A:-${B}}", "${", "${1A}", "x${A"])
def test_what_begins_like_a_variable_and_is_none_is_refused(refusal: Refusal, written: str) -> None:
    assert "tables[0].created_at: has a ${ that begins no variable" in refusal(table(f'created_at: "{written}"'))


def test_the_password_in_a_database_url_must_be_set(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DB_PASSWORD", raising=False)
    said = refusal(f"database:\n  url: postgresql://app:${{DB_PASSWORD}}@db/app\n{TABLE}")
    assert said.startswith(":2: database.url: the environment variable DB_PASSWORD is not set")


@pytest.mark.parametrize("written", ["", "database: {schema: ops}", "database: {url: '${OFFLOAD_DATABASE_URL}'}"])
def test_the_environment_names_the_database_where_the_file_does_not(
    load: Load, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    text = f"{written}\n{TABLE}"
    assert load(text).database.url is None
    monkeypatch.setenv("SUPABASE_DB_URL", "postgresql://supabase/db")
    assert load(text).database.url == "postgresql://supabase/db"
    monkeypatch.setenv("OFFLOAD_DATABASE_URL", URL)
    assert load(text).database.url == URL


def test_the_url_in_the_file_precedes_the_environment(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFLOAD_DATABASE_URL", "postgresql://other/db")
    assert load(f"database: {{url: {URL}}}\n{TABLE}").database.url == URL


# What is refused: one line with line number, key path and mend


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": is not a mapping; it needs at least `tables:`"),
        ("# nothing\n", ": is not a mapping"),
        ("- a\n- b\n", ": is not a mapping"),
        ("tables: []\n", ":1: tables: "),
        ("database: {}\n", ": tables: is missing; add it"),
        ("tables:\n\t- name: a\n", ":2: not YAML: found character '\\t' that cannot start any token"),
        ("tables: [\n", ":2: not YAML: "),
        ("tables: *nowhere\n", ":1: not YAML: found undefined alias"),
        ("tables: !python/object:os.system {}\n", ":1: not YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", ":2: not YAML: "),
        ("[a]: 1\n", ":1: not YAML: found unhashable key"),
        (f"since: 2024-13-45\n{TABLE}", ": not YAML: month must be in 1..12"),
        (f"1: x\n{TABLE}", ": [1]: "),
        (f"tables: []\n{TABLE}", ":2: tables: is written twice; remove one"),
        (table("threshold_bytes: 1", "threshold_bytes: 2"), ":7: threshold_bytes: is written twice"),
        (table("columns: {size: a, size: b}"), ":6: size: is written twice"),
        ("tables: &all\n  - *all\n", ": nests without end; remove the anchor"),
        ("[" * 5000, ": nests without end"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(refusal: Refusal, text: str, said: str) -> None:
    assert refusal(text).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            table("treshold_bytes: 5"),
            ":6: tables[0].treshold_bytes: unknown key; did you mean threshold_bytes?",
        ),
        (table("columns: {sise: a}"), ":6: tables[0].columns.sise: unknown key; did you mean size?"),
        (
            f"batches_in_flight: 1\n{TABLE}",
            ":1: batches_in_flight: unknown key; did you mean offload.batches_in_flight?",
        ),
        (f"url: a\n{TABLE}", ":1: url: unknown key; did you mean database.url or object_store.url?"),
        (f"payload: a\n{TABLE}", ":1: payload: unknown key; did you mean tables[0].payload?"),
        (f"databse: {{}}\n{TABLE}", ":1: databse: unknown key; did you mean database?"),
        (f"database:\n  shema: a\n{TABLE}", ":2: database.shema: unknown key; did you mean schema?"),
        (f"object_store:\n  zzz: a\n{TABLE}", ":2: object_store.zzz: unknown key; use one of url, endpoint"),
        (f"retention:\n  grade: 5 days\n{TABLE}", ":2: retention.grade: unknown key; did you mean grace?"),
        (
            f"back_pressure:\n  zzz: 1\n{TABLE}",
            ":2: back_pressure.zzz: unknown key; use one of max_replica_lag_bytes, max_wal_files_waiting",
        ),
        (f"database: {URL}\n{TABLE}", ":1: database: is not a mapping; write its keys below it"),
        ("tables: {name: notices}\n", ":1: tables: is not a list; begin each entry with a dash"),
        (TABLE.replace("    payload: raw_payload\n", ""), ":2: tables[0].payload: is missing; add it"),
        (table("threshold_bytes: much"), ":6: tables[0].threshold_bytes: "),
        (table("threshold_bytes: -1"), ":6: tables[0].threshold_bytes: "),
        (table("threshold_bytes: yes"), ":6: tables[0].threshold_bytes: is read as true or false"),
        (table("created_at: 5"), ":6: tables[0].created_at: is not text; put it in quotes"),
        (
            table("after_copy: purge"),
            ":6: tables[0].after_copy: is not known; use one of clear, reference or keep",
        ),
        (
            table("release_delay: soon"),
            ":6: tables[0].release_delay: is not a duration; write for example 90 days",
        ),
        (table("primary_key: []"), ":6: tables[0].primary_key: "),
        (table("primary_key: ['']"), ":6: tables[0].primary_key[0]: is empty; name a column"),
        (table(f"created_at: {'x' * 64}"), ":6: tables[0].created_at: is longer than PostgreSQL's 63 bytes"),
        (table("columns: {size: raw_payload}"), ":2: tables[0]: columns uses the application's own column"),
        (table("columns: {size: a, hash: a}"), ":6: tables[0].columns: names one column twice"),
        (table("key_template: '{tenant}/{table}'"), ":6: tables[0].key_template: lacks {sha256}"),
        (table("key_template: '{sha256:.5}'"), ":6: tables[0].key_template: changes a field by a ! or :"),
        (table("key_template: '../{sha256}'"), ":6: tables[0].key_template: must be a relative path"),
        (
            table("key_template: '{sha256}{owner}'"),
            ":6: tables[0].key_template: has the unknown field {owner}",
        ),
        (
            TABLE.replace("{column: tenant_id}", "{}"),
            ":4: tables[0].tenant: needs exactly one of column and value",
        ),
        (
            TABLE.replace("{column: tenant_id}", "{column: a, value: b}"),
            ":4: tables[0].tenant: needs exactly one",
        ),
        (TABLE.replace("public.notices", "a.b.c"), ":3: tables[0].relation: has more than two parts"),
        (
            TABLE.replace("public.notices", "a-b"),
            ":3: tables[0].relation: is not a table name; write schema.table",
        ),
        (TABLE.replace("name: notices", "name: a/b"), ":2: tables[0].name: may hold letters, digits"),
        (TABLE + TABLE[8:], ": tables has two entries "),
        (TABLE + TABLE[8:].replace("notices", "Notices"), ": tables has two entries "),
        (
            f"object_store: {{url: 'ftp://x'}}\n{TABLE}",
            ":1: object_store.url: has the scheme 'ftp'; write file:///",
        ),
        (
            f"object_store: {{url: 'file://x/y'}}\n{TABLE}",
            ":1: object_store.url: is not absolute; write file:///",
        ),
        (f"tenant_buckets: 0\n{TABLE}", ":1: tenant_buckets: "),
        (f"offload: {{sensor: off}}\n{TABLE}", ":1: offload.sensor: is read as true or false"),
    ],
)
def test_a_wrong_value_is_answered_with_line_key_and_mend(refusal: Refusal, text: str, said: str) -> None:
    assert refusal(text).startswith(said)


@pytest.mark.parametrize(
    "text",
    [
        f"database: postgresql://u:{PASSWORD}@h/db",
        f"database:\n  postgresql://u:{PASSWORD}@h/db: x",
        f"database: {{url: 'postgresql://u:{PASSWORD}@h:5432x/db'}}",
        f"database: {{url: 'postgresql://u:p@{PASSWORD}@h/db'}}",
        f"database: {{url: 'postgresql://u:p/w:{PASSWORD}@h/db'}}",
        f"database: {{url: postgresql://u:{PASSWORD}, x: y}}",
        f"database: {{url: 'password={PASSWORD} host'}}",
        f"database: {{url: [postgresql://u:{PASSWORD}@h/db]}}",
        f"database: {{url: !postgresql://u:{PASSWORD}@h/db}}",
        f"database: {{url: postgresql://u:{PASSWORD}@h/db, uurl: postgresql://u:{PASSWORD}@h/db}}",
        f"object_store: {{url: '{PASSWORD}:{PASSWORD}@bucket'}}",
        f"object_store: {{url: 's3://key:{PASSWORD}@bucket'}}",
        f"object_store: {{url: 'postgresql://u:{PASSWORD}@h/db'}}",
    ],
)
def test_no_refusal_repeats_a_password(refusal: Refusal, text: str) -> None:
    assert PASSWORD not in refusal(f"{text}\n{TABLE}")


@pytest.mark.parametrize("url", [f"postgresql://u:{PASSWORD} #x@h/db", f"mysql://u:{PASSWORD}@h/db"])
def test_a_database_url_that_libpq_cannot_read_is_refused_with_an_example(refusal: Refusal, url: str) -> None:
    said = refusal(f"database:\n  schema: ops\n  url: {url}\n{TABLE}")
    assert said.startswith(":3: database.url: ")
    assert "write postgresql://user@host:5432/database" in said
    assert PASSWORD not in said


def test_a_hash_in_an_unquoted_url_is_kept(load: Load) -> None:
    assert load(f"database: {{url: 'postgresql://u:p%23@h/db'}}\nobject_store:\n  url: file:///a#b\n{TABLE}") == (
        load(f"database: {{url: 'postgresql://u:p%23@h/db'}}\nobject_store: {{url: 'file:///a#b'}}\n{TABLE}")
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("table:\n  - {name: a}", ":1: table: unknown key; did you mean tables?"),
        ("tables: []", ":1: tables: is empty; write at least one entry"),
        ("offload: {batch_bytes: 100 kB}", "is not a whole number; write digits alone, such as 102400 for 100 kB"),
        ("offload: {batches_in_flight: 1.5}", "is not a whole number; write digits alone"),
        ("retention: {max_orphan_share: some}", "is not a number; write digits alone"),
        ("retention: {delete: maybe}", "is neither true nor false; write one of them"),
        ("retention: {grace: 1m}", "is too small; write 1 hour or more"),
        ("retention: {grace: [1]}", "is not a duration; write for example 90 days, 5 minutes or 0s"),
        ("offload: {batch_rows: 2000}", "is too large; write 1000 or less"),
    ],
)
def test_what_a_value_cannot_be_is_said_in_words_of_its_own(refusal: Refusal, text: str, said: str) -> None:
    assert refusal(text if text.startswith("table") else TABLE + text).endswith(said)
