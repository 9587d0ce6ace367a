"""The command line driven by tests: in this process, or as a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from offload_pipeline.cli import main
from offload_pipeline.config import TableConfig

REPOSITORY = Path(__file__).parents[2]
PROCESS_SECONDS = 60
# What the installed `offload` script does; warnings are errors there too.
SCRIPT = [
    sys.executable,
    "-W",
    "error",
    "-c",
    "import sys; from offload_pipeline.cli import main; sys.exit(main())",
]


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.decode().splitlines()

    @property
    def document(self) -> Any:
        """The one JSON document on stdout; anything before or after it fails here."""
        return json.loads(self.stdout)

    @property
    def complaint(self) -> str:
        """The one line on stderr."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        return lines[0]


class Command:
    """`offload`, with a configuration of the test's own."""

    def __init__(
        self,
        folder: Path,
        urls: tuple[str, str],
        capture: pytest.CaptureFixture[bytes],
        patch: pytest.MonkeyPatch,
    ) -> None:
        self.config_path = folder / "offload.yaml"
        self.database_url, self.store_url = urls
        self._capture = capture
        self.patch = patch
        patch.setenv("OFFLOAD_CONFIG", str(self.config_path))
        patch.setenv("OFFLOAD_HOME", str(folder / "home"))
        for name in ("OFFLOAD_DATABASE_URL", "SUPABASE_DB_URL"):
            patch.delenv(name, raising=False)

    def configure(self, *tables: TableConfig, **sections: Mapping[str, Any]) -> None:
        """Writes offload.yaml; `sections` are merged over the test's two URLs."""
        document: dict[str, Any] = {
            **sections,
            "database": {"url": self.database_url, **sections.get("database", {})},
            "object_store": {"url": self.store_url, **sections.get("object_store", {})},
            "tables": [table.model_dump(mode="json", by_alias=True, exclude_unset=True) for table in tables],
        }
        self.config_path.write_text(json.dumps(document))

    def __call__(self, *arguments: str) -> Answer:
        """Runs in this process."""
        self._capture.readouterr()
        code = main(arguments)
        said = self._capture.readouterr()
        return Answer(code, said.out, said.err.decode())

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts a process of its own."""
        return subprocess.Popen(
            [*SCRIPT, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )

    def process(self, *arguments: str) -> Answer:
        """Runs as a process of its own, to its end."""
        with self.start(*arguments) as process:
            stdout, stderr = process.communicate(timeout=PROCESS_SECONDS)
        return Answer(process.returncode, stdout, stderr.decode())
