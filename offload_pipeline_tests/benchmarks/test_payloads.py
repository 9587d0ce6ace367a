"""The payloads that are moved are of the size that the table says, and no two of them the same."""

import json
from itertools import islice
from pathlib import Path
from statistics import mean

import pytest

from benchmarks import payloads

TEXTS = 300


@pytest.mark.parametrize("size_bytes", [1_000, 8_000, 150_000])
@pytest.mark.parametrize("are_real", [True, False])
def test_payloads_are_of_about_their_size_and_all_different(
    size_bytes: int, are_real: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not are_real:
        monkeypatch.setattr(payloads, "REAL", tmp_path / "none")
    elif not payloads.are_real():
        pytest.skip("the real webhooks are not beside this clone")
    texts = list(islice(payloads.payloads(size_bytes), TEXTS))
    assert mean(map(len, texts)) == pytest.approx(size_bytes, rel=0.25)
    assert all(json.loads(text)["events"] for text in texts)
    assert len(set(texts)) == TEXTS


def test_the_same_payloads_are_made_each_time() -> None:
    assert list(islice(payloads.payloads(8_000), 20)) == list(islice(payloads.payloads(8_000), 20))
