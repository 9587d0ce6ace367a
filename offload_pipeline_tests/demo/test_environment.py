"""The demo lives in its own folder: no database or bucket that the environment names is touched."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psycopg
import pytest

from offload_pipeline.cli.demo import read_one_back
from offload_pipeline.cli.output import Output
from offload_pipeline.config import DATABASE_VARIABLES, load_config
from offload_pipeline.database.embedded import stop_embedded
from offload_pipeline.demo.environment import demo_environment, enter
from offload_pipeline.demo.payloads import Document
from offload_pipeline.demo.tables import fill, now, rebuild
from offload_pipeline.pipeline import open_pipeline
from offload_pipeline.storage.seaweedfs import SeaweedFS
from offload_pipeline_tests.factories import large_payload, make_table

DEMO = """
import sys
from pathlib import Path
from offload_pipeline.demo.environment import demo_environment, enter
from offload_pipeline.demo.payloads import Document
from offload_pipeline.demo.tables import fill, now, rebuild
from offload_pipeline.pipeline import open_pipeline
enter(demo_environment(Path(sys.argv[1]), None))
pipeline = open_pipeline()
rebuild(pipeline)
print(fill(pipeline, "notices", [Document("email", now(), '{"a": 1}')]))
"""


def test_the_database_of_the_environment_is_not_touched(database_url: str, tmp_path: Path) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        make_table(connection, relation="public.notices")
        connection.execute("INSERT INTO notices (tenant_id, raw_payload) VALUES ('acme', '{}')")
        theirs = {**os.environ, **dict.fromkeys(DATABASE_VARIABLES, database_url), "OFFLOAD_CONFIG": "missing.yaml"}
        done = subprocess.run(
            [sys.executable, "-c", DEMO, tmp_path / "home"],
            env=theirs, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
        found = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
        assert {name for (name,) in found} == {"notices", "notices_pkey", "notices_id_seq"}
        columns = connection.execute("SELECT * FROM notices").description or ()
        assert [column.name for column in columns] == ["id", "tenant_id", "raw_payload", "created_at"]


def test_everything_of_the_demo_is_under_its_folder(demo_variables: Mapping[str, str]) -> None:
    home = Path(demo_variables["OFFLOAD_HOME"])
    for name in ("OFFLOAD_DATABASE_URL", "OFFLOAD_DAGSTER_DATABASE_URL"):
        assert str(home / "postgres") in demo_variables[name] or "offload-pg-" in demo_variables[name]
    assert Path(demo_variables["DAGSTER_HOME"]).is_relative_to(home)
    assert (Path(demo_variables["DAGSTER_HOME"]) / "dagster.yaml").exists()


def test_dagster_keeps_its_records_in_a_database_of_its_own(demo_variables: Mapping[str, str]) -> None:
    ours, dagsters = demo_variables["OFFLOAD_DATABASE_URL"], demo_variables["OFFLOAD_DAGSTER_DATABASE_URL"]
    with psycopg.connect(ours) as one, psycopg.connect(dagsters) as other:
        assert one.info.dbname != other.info.dbname


def test_a_bucket_of_the_environment_is_not_used_with_the_local_store(
    demo_variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OFFLOAD_DEMO_STORE", "OFFLOAD_DEMO_ENDPOINT"):
        monkeypatch.setenv(name, "s3://somebody-elses")
    for name, value in demo_variables.items():
        monkeypatch.setenv(name, value)
    assert load_config().object_store.url is None
    assert open_pipeline().store.url == (Path(demo_variables["OFFLOAD_HOME"]) / "objects").as_uri()


def test_the_demo_on_s3_stores_in_its_own_server(
    seaweedfs: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in DATABASE_VARIABLES:
        monkeypatch.setenv(name, "postgresql://nobody@127.0.0.1:1/nothing")
    variables = demo_environment(tmp_path, seaweedfs)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    enter(variables)
    try:
        pipeline = open_pipeline()
        assert pipeline.store.url == f"s3://{seaweedfs.bucket}"
        pipeline.store.check()
        rebuild(pipeline)
        fill(pipeline, "notices", [Document("push", now(), large_payload(3_000, 1))])
        with pipeline.connect() as connection:
            (partition,) = pipeline.partitions(connection, "notices", None)
        assert pipeline.drain(partition, "test").is_sound
        capsys.readouterr()
        assert read_one_back(Output(as_json=False), pipeline) is not None
        assert "offload get" not in capsys.readouterr().out, "its server ends with the demo"
    finally:
        stop_embedded(tmp_path / "postgres")
    assert not (tmp_path / "objects").exists()
