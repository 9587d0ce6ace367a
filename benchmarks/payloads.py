"""The payloads that are moved: real webhooks where the data file is there, else made-up ones."""

import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from random import Random

from offload_pipeline.demo.payloads import webhooks

REAL = Path(__file__).parents[2] / "shared" / "data" / "webhook_payloads.jsonl.gz"
GENERATED = 273


def are_real() -> bool:
    """Whether the real webhooks are there."""
    return REAL.exists()


def payloads(size_bytes: int) -> Iterator[str]:
    """JSON texts of about `size_bytes`, no two the same, without end: as many webhooks in each as it takes."""
    fitting = [document for document in _documents() if len(document) <= 1.25 * size_bytes]
    chance = Random(1)  # noqa: S311 - neighbours in the file are of one kind, and would pack better than they should
    half = sum(map(len, fitting)) / len(fitting) / 2
    for number in count():
        parts = [chance.choice(fitting)]
        while sum(map(len, parts)) + half < size_bytes:
            parts.append(chance.choice(fitting))
        yield f'{{"delivery": {number}, "events": [{", ".join(parts)}]}}'


def _documents() -> list[str]:
    if not REAL.exists():
        made = webhooks(GENERATED, seed=1, now=datetime.now(UTC), min_bytes=1024, max_bytes=20_000)
        return [document.text for document in made]
    with gzip.open(REAL, "rt") as lines:
        return [json.dumps(json.loads(line)["payload"]) for line in lines]
