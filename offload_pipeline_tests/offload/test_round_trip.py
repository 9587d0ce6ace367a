"""What comes back from the store is, byte for byte, what PostgreSQL printed before it left the row."""

import gzip
import json
import random
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from offload_pipeline.demo.payloads import emails, webhooks
from offload_pipeline.offload.reader import PayloadReader, ReadPayload
from offload_pipeline_tests.factories import large_payload
from offload_pipeline_tests.offload.installation import Installation, StoreAddress, installed

REAL_PAYLOADS = Path(__file__).parents[3] / "shared" / "data" / "webhook_payloads.jsonl.gz"
REAL_PAYLOADS_COUNT = 273
needs_real_payloads = pytest.mark.skipif(
    not REAL_PAYLOADS.exists(), reason="no ../../../shared/data/webhook_payloads.jsonl.gz beside this file"
)

NUMBERS = [
    "1.10",
    "1e400",
    "-1E-400",
    "-0.0",
    "123456789012345678901234567890",
    "0.123456789012345678901234567890",
    "[1, 1.0, 1.00, 1e2, 0.1e1, 100000000000000000000.10]",
]
TEXTS = [
    r'"\u0001\u001f\t\r\n\b\f\u007f"',
    '{"emoji": "🧾👩‍👩‍👧 \\ud83d\\ude00", "combining": "e\u0301"}',
    r'{"quotes": "\"\\\"\\\\ \/", "a\"b": "</script>"}',
    '"\u2028\u2029\ufeff\uffff"',
    '{"sha256": "storage_ref", "payload_type": "storage_ref"}',
]
BARE = ["null", "true", "{}", "[]", '""', "0", '[null, {"": null}]']
ODD_SPACE = ['{ "b" :1,\n\t"a":2,   "a": 3, "A":[ ] }', " [1 ,2]\n", "\r\n{}\r\n"]
ONLY_JSON = [r'{"nul": "\u0000", "lone": "\ud800"}', '{"dup": 1, "dup": 2, "dup": {"dup": 3}}']
ONLY_TEXT = ["", " ", "plain, not JSON", "<a href='x'>\r\n</a>", "{broken", "\ufeff\u0085"]
TEN_MEGABYTES = 10 * 1024 * 1024

PAYLOADS_BY_TYPE = {
    "jsonb": [*NUMBERS, *TEXTS, *BARE, *ODD_SPACE],
    "json": [*NUMBERS, *TEXTS, *BARE, *ODD_SPACE, *ONLY_JSON],
    "text": [*NUMBERS, *TEXTS, *BARE, *ODD_SPACE, *ONLY_JSON, *ONLY_TEXT],
}


def documents() -> Iterator[str]:
    """Made-up webhooks and e-mails."""
    now = datetime(2024, 5, 1, tzinfo=UTC)
    for made in (webhooks, emails):
        yield from (document.text for document in made(12, seed=7, now=now, min_bytes=1024, max_bytes=200_000))


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def assert_payloads_come_back(installation: Installation, payloads: Iterable[str]) -> None:
    keys = installation.insert(payloads)
    before = dict(installation.execute("SELECT id, convert_to(raw_payload::text, 'UTF8') FROM {table}").fetchall())

    drained = installation.drain()

    assert drained.is_sound, drained
    assert drained.copied.payload_bytes == sum(map(len, before.values()))
    assert installation.one_status() == "in_storage"
    assert installation.verify(full=True).rows_read == len(keys)
    installation.assert_invariant()
    with PayloadReader(installation.pipeline) as reader:
        found = dict(reader.get_many("notices", keys))
    for key in keys:
        assert isinstance(found[key], ReadPayload), found[key]
        assert found[key].source == "store"
        assert found[key].payload == before[key]
        assert gzip.decompress(installation.store.get(installation.object_key(key))) == before[key]


@pytest.mark.parametrize("payload_type", PAYLOADS_BY_TYPE)
def test_every_payload_comes_back_byte_for_byte(database_url: str, any_store: StoreAddress, payload_type: str) -> None:
    with installed(database_url, any_store, payload_type=payload_type) as installation:
        payloads = [*PAYLOADS_BY_TYPE[payload_type], nested(500), *documents(), large_payload(TEN_MEGABYTES)]
        assert_payloads_come_back(installation, payloads)


def test_fast_compression_stores_the_same_payloads(database_url: str, local_store_url: str) -> None:
    sections = {"offload": {"compression": "fast"}}
    with installed(database_url, local_store_url, payload_type="text", sections=sections) as installation:
        assert_payloads_come_back(installation, [*PAYLOADS_BY_TYPE["text"], large_payload(1_000_000)])


@pytest.mark.both_servers
def test_generated_documents_come_back_byte_for_byte(notices: Installation) -> None:
    rng = random.Random(20240501)  # noqa: S311 - the same documents each time
    assert_payloads_come_back(
        notices, [json.dumps(a_value(rng, 4), ensure_ascii=rng.random() < 0.5) for _ in range(300)]
    )


def a_value(rng: random.Random, depth: int) -> object:
    """Anything that JSON can hold and jsonb takes."""
    kinds = 7 if depth else 5
    match rng.randrange(kinds):
        case 0:
            return rng.choice([None, True, False])
        case 1:
            return rng.randrange(-(10**30), 10**30)
        case 2:
            return rng.uniform(-1, 1) * 10.0 ** rng.randrange(-300, 300)
        case 3 | 4:
            return a_text(rng)
        case 5:
            return [a_value(rng, depth - 1) for _ in range(rng.randrange(6))]
        case _:
            return {a_text(rng): a_value(rng, depth - 1) for _ in range(rng.randrange(6))}


def a_text(rng: random.Random) -> str:
    planes = ((0x01, 0x20), (0x20, 0x7F), (0xA0, 0x24F), (0x4E00, 0x4F00), (0x1F300, 0x1F600))
    return "".join(chr(rng.randrange(*rng.choice(planes))) for _ in range(rng.randrange(12)))


@needs_real_payloads
def test_real_webhook_payloads_come_back_byte_for_byte(database_url: str, any_store: StoreAddress) -> None:
    with gzip.open(REAL_PAYLOADS, "rt", encoding="utf-8") as lines:
        payloads = [json.dumps(json.loads(line)["payload"], ensure_ascii=False) for line in lines]
    assert len(payloads) == REAL_PAYLOADS_COUNT
    arrays = [f"[{', '.join(payloads[start : start + 40])}]" for start in range(0, REAL_PAYLOADS_COUNT, 40)]
    assert max(map(len, arrays)) > 100_000
    with installed(database_url, any_store, payload_type="json") as installation:
        assert_payloads_come_back(installation, [*payloads, *arrays])


ODD_IDS = [
    "a/b", "..", ".", "../../etc", "a b", "é", "100%", "%2F", "a%2Fb", "|", "*?[x]", "tab\t", "new\nline", "_",
    "%5F", "a,b", "a\\b", "x" * 300, "é" * 120, "A", "a", "~", "#frag?q=1", "con", ".part", "-",
]  # fmt: skip


def test_tenants_and_keys_of_any_characters_keep_their_objects_apart(
    database_url: str, any_store: StoreAddress
) -> None:
    with installed(database_url, any_store, key_columns={"id": "text"}) as installation:
        for number, odd in enumerate(ODD_IDS):
            installation.insert([f'{{"tenant": {number}}}'], tenant=odd, id=f"row-{number}")
            installation.insert([f'{{"key": {number}}}'], tenant="all", id=odd)
        for tenant in [*ODD_IDS, "all"]:
            assert installation.drain(tenant).is_sound
        assert installation.one_status() == "in_storage"
        installation.assert_invariant()
        keys = [installation.object_key(key) for key in installation.expected]
        assert len(set(keys)) == 2 * len(ODD_IDS)
        assert all(key.count("/") == 3 for key in keys)


def test_gunzip_and_sha256sum_alone_audit_an_object(notices: Installation, local_store_url: str) -> None:
    if not (shutil.which("gunzip") and shutil.which("sha256sum")):
        pytest.skip("gunzip and sha256sum are not installed")
    (key,) = notices.insert(['{"b": 1.10, "a": "é"}'])
    before = notices.expected[key]
    notices.drain()
    path = Path(local_store_url.removeprefix("file://")) / notices.object_key(key)
    audited = subprocess.check_output(["sh", "-c", 'gunzip -c "$0" | sha256sum', str(path)], text=True)
    assert audited.split()[0] == before
    assert path.name == f"{before}.json.gz"


def test_the_same_payload_always_becomes_the_same_object(notices: Installation) -> None:
    first, second = notices.insert(['{"a": 1}', '{"a": 1}'])
    notices.copy()
    objects = [notices.store.get(notices.object_key(key)) for key in (first, second)]
    assert objects[0] == objects[1]
    assert objects[0][:8] == b"\x1f\x8b\x08\x00" + bytes(4), "deflate, no file name, mtime 0"


def test_rows_without_payload_stay_as_they_are(notices: Installation) -> None:
    notices.insert([None, "null"])
    assert notices.drain().is_sound
    assert list(notices.statuses().values()) == ["inline", "in_storage"]
    notices.assert_invariant()
