"""What it was measured on, without any name or path of it."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # has no type information

from benchmarks.payloads import are_real
from benchmarks.servers import Servers

_CPU_INFO = Path("/proc/cpuinfo")
_PACKAGES = ("offload-pipeline", "psycopg", "obstore", "deflate", "boto3")


def describe(servers: Servers) -> dict[str, str]:
    """The machine, the servers and the libraries."""
    with servers.connect() as connection:
        postgres = connection.info.parameter_status("server_version") or ""
    return {
        "CPU": f"{_cpu_model()}, {psutil.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.machine()}",
        "PostgreSQL": f"{postgres}, embedded",
        "SeaweedFS": _seaweedfs(servers),
        "Python": platform.python_version(),
        "payloads": "real webhooks" if are_real() else "generated webhooks",
        **{package: version(package) for package in _PACKAGES},
    }


def _cpu_model() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _seaweedfs(servers: Servers) -> str:
    program = psutil.Process(servers.s3.pid).exe()
    said = subprocess.check_output([program, "version"], text=True, stderr=subprocess.DEVNULL)  # noqa: S603 - what runs
    return said.split()[2]  # version 8000GB 4.48 …
