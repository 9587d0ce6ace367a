"""Where the demo runs: everything embedded under one folder, whatever database the environment names."""

import os
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from offload_pipeline.config import CONFIG_VARIABLE, DATABASE_VARIABLES, HOME_VARIABLE
from offload_pipeline.database.embedded import embedded_url
from offload_pipeline.storage.seaweedfs import SeaweedFS

DAGSTER_DATABASE = "dagster"
# These would be sent along with the demo's own keys, or to another server.
CALLERS_ACCOUNT = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
# Read by defs.storage, which brings Dagster; `offload --help` must not.
DAGSTER_DATABASE_VARIABLE = "OFFLOAD_DAGSTER_DATABASE_URL"


def demo_environment(home: Path, s3: SeaweedFS | None) -> dict[str, str]:
    """The variables under which configuration, definitions and `dagster dev` all see the demo. Starts PostgreSQL."""
    home.mkdir(parents=True, exist_ok=True)
    variables = {
        CONFIG_VARIABLE: str(files("offload_pipeline") / "demo" / "offload.yaml"),
        HOME_VARIABLE: str(home),
        DATABASE_VARIABLES[0]: embedded_url(home / "postgres"),
        "DAGSTER_HOME": str(_dagster_home(home)),
        DAGSTER_DATABASE_VARIABLE: embedded_url(home / "postgres", DAGSTER_DATABASE),
        "OFFLOAD_DEMO_STORE": "",
        "OFFLOAD_DEMO_ENDPOINT": "",
    }
    if s3:
        variables |= {
            "OFFLOAD_DEMO_STORE": f"s3://{s3.bucket}",
            "OFFLOAD_DEMO_ENDPOINT": s3.endpoint,
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        }
    return variables


def enter(variables: Mapping[str, str]) -> None:
    """Makes them this process's environment, without the caller's own account where the demo has one."""
    if "AWS_ACCESS_KEY_ID" in variables:
        for name in CALLERS_ACCOUNT:
            os.environ.pop(name, None)
    os.environ.update(variables)


def _dagster_home(home: Path) -> Path:
    """Dagster's home with the project's dagster.yaml: inside the wheel, else at the top of the source tree."""
    package = Path(str(files("offload_pipeline")))
    source = next(path for path in (package / "dagster.yaml", package.parent / "dagster.yaml") if path.exists())
    folder = home / "dagster"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(source, folder / "dagster.yaml")
    return folder
