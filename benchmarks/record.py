"""What was measured last, measure by measure, as JSON beside this file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import Measured

FILE = Path(__file__).with_name("results.json")
DIGITS = 5


@dataclass(frozen=True)
class Record:
    """One module's figures, and when and on what they were measured."""

    date: str
    machine: dict[str, str]
    figures: tuple[Measured, ...]


def read(file: Path) -> dict[str, Record]:
    """By the name of the module; nothing where nothing was measured yet."""
    if not file.exists():
        return {}
    return {name: _record(**document) for name, document in json.loads(file.read_text()).items()}


def write(records: Mapping[str, Record], file: Path) -> None:
    """All of them; what was not measured this time stays as it was."""
    documents = {name: _rounded(asdict(record)) for name, record in sorted(records.items())}
    file.write_text(json.dumps(documents, indent=1, ensure_ascii=False) + "\n")


def _record(date: str, machine: dict[str, str], figures: Sequence[dict[str, Any]]) -> Record:
    return Record(date, machine, tuple(Measured(**one | {"runs": tuple(one["runs"])}) for one in figures))


def _rounded(value: Any) -> Any:
    """Figures to so many digits, of which no more than three tell anything."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
