"""docs/reading-and-writing.md does what it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from offload_pipeline.offload.writer import FALLBACK_VARIABLE
from offload_pipeline.storage.seaweedfs import SeaweedFS
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.installation import Installation, StoreAddress, installed
from offload_pipeline_tests.offload.worker import REPOSITORY

DOCUMENT = (REPOSITORY / "docs" / "reading-and-writing.md").read_text()
LARGE = large_payload(1000)
CONFIG = """
object_store: {{url: {url}, endpoint: {endpoint}}}
tables:
  - {{name: notices, relation: notices, tenant: {{column: tenant_id}}, payload: raw_payload, threshold_bytes: 500}}
"""


def examples(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found
    return found


@pytest.fixture
def environment(
    database_url: str, s3_url: str, seaweedfs: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "offload.yaml").write_text(CONFIG.format(url=s3_url, endpoint=seaweedfs.endpoint))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OFFLOAD_CONFIG", raising=False)
    monkeypatch.delenv(FALLBACK_VARIABLE, raising=False)
    monkeypatch.setenv("OFFLOAD_DATABASE_URL", database_url)
    monkeypatch.setenv("BUCKET_URL", f"{seaweedfs.endpoint}/{s3_url.removeprefix('s3://')}")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def notices(environment: None, database_url: str, s3_store: StoreAddress) -> Any:
    with installed(database_url, s3_store, threshold_bytes=500) as installation:
        yield installation


def test_the_python_examples_run(notices: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    notices.insert([LARGE, '{"a": 1}'])
    notices.drain()
    names: dict[str, Any] = {}
    for example in examples("python"):
        exec(compile(example, "reading-and-writing.md", "exec"), names)  # noqa: S102 - our own documentation
    names["reader"].close()
    names["writer"].close()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("store ")
    assert said[1:4] == [
        f"1 {len(LARGE)} bytes", "2 8 bytes",
        "999 cannot be had: notices has no row with the key 999; check the key",
    ]  # fmt: skip
    assert said[4] == "['in_storage', 'inline']"
    assert said[5].startswith("http://127.0.0.1")
    assert said[6] == "in_storage store"
    assert notices.verify(full=True).rows_read == 2


@pytest.mark.skipif(not (shutil.which("psql") and shutil.which("curl")), reason="needs psql and curl")
def test_the_move_by_hand_runs(notices: Installation) -> None:
    notices.insert([None, None, LARGE])
    (script,) = examples("sh")
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert notices.statuses()[3] == "in_storage"
    assert notices.object_key(3) == f"by-hand/{notices.expected[3]}.json.gz"
    notices.assert_invariant()
