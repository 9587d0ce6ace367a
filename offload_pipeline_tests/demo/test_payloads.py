"""The demo's payloads are valid, sized, spread and reproducible; a JSONL file comes through byte for byte."""

import gzip
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_pipeline.demo.payloads import (
    SMALLEST_BYTES,
    Document,
    _member_text,
    documents_from_jsonl,
    emails,
    tenders,
    webhooks,
)
from offload_pipeline.errors import UserError

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
Maker = Callable[..., Iterator[Document]]
each_kind = pytest.mark.parametrize("maker", [webhooks, emails, tenders])


def some(maker: Maker, count: int = 60, *, seed: int = 1, sizes: tuple[int, int] = (1_024, 60_000)) -> list[Document]:
    return list(maker(count, seed=seed, now=NOW, min_bytes=sizes[0], max_bytes=sizes[1]))


def size_bytes(document: Document) -> int:
    return len(document.text.encode())


@each_kind
def test_every_document_is_a_json_object(maker: Maker) -> None:
    documents = some(maker)
    assert len(documents) == 60
    assert all(isinstance(json.loads(document.text), dict) for document in documents)


@each_kind
def test_no_placeholder_is_left_in_a_document(maker: Maker) -> None:
    assert not any(re.search(r"\{[a-z]+( [0-9]+)?\}", document.text) for document in some(maker))


@each_kind
@pytest.mark.parametrize("size", [1_024, 1_500, 2_000, 3_000, 10_000, 200_000])
def test_a_document_has_the_size_asked_for(maker: Maker, size: int) -> None:
    for document in some(maker, sizes=(size, size)):
        assert size_bytes(document) == pytest.approx(size, rel=0.15)


@each_kind
def test_sizes_are_log_uniform(maker: Maker) -> None:
    sizes = [size_bytes(document) for document in some(maker, 600, sizes=(2_000, 200_000))]
    below = sum(size < 20_000 for size in sizes)
    assert below / len(sizes) == pytest.approx(0.5, abs=0.1)
    assert median(sizes) == pytest.approx(math.sqrt(2_000 * 200_000), rel=0.4)


@each_kind
def test_documents_compress_as_real_ones_do(maker: Maker) -> None:
    texts = [document.text.encode() for document in some(maker, 20, sizes=(100_000, 200_000))]
    ratio = sum(map(len, texts)) / sum(len(gzip.compress(text, 6)) for text in texts)
    assert 4 < ratio < 8


@each_kind
def test_the_same_seed_gives_the_same_documents(maker: Maker) -> None:
    assert some(maker, seed=7) == some(maker, seed=7)


@each_kind
def test_another_seed_gives_other_documents(maker: Maker) -> None:
    assert not {d.text for d in some(maker, seed=7)} & {d.text for d in some(maker, seed=8)}


@each_kind
def test_no_two_documents_are_alike(maker: Maker) -> None:
    assert len({document.text for document in some(maker, 500, sizes=(1_024, 2_000))}) == 500


@each_kind
def test_documents_are_made_one_at_a_time(maker: Maker) -> None:
    endless = maker(10**12, seed=1, now=NOW, min_bytes=2_000, max_bytes=2_000)
    assert len(list(itertools.islice(endless, 3))) == 3


@each_kind
def test_creation_times_cover_the_ninety_days_before_now(maker: Maker) -> None:
    ages = [NOW - document.created_at for document in some(maker, 300, sizes=(1_024, 1_024))]
    assert all(timedelta(0) < age < timedelta(days=90) for age in ages)
    assert {age.days // 10 for age in ages} == set(range(9))


def test_creation_times_are_in_utc_whatever_the_zone_of_now() -> None:
    now = NOW.astimezone(tz=datetime.strptime("+0530", "%z").tzinfo)
    made = list(emails(5, seed=1, now=now, min_bytes=2_000, max_bytes=2_000))
    assert made == some(emails, 5, sizes=(2_000, 2_000))
    assert all(document.created_at.tzinfo is UTC for document in made)


def test_webhooks_come_from_more_than_one_sender() -> None:
    assert {document.kind for document in some(webhooks)} == {"push", "invoice.paid"}


def test_an_email_says_the_same_in_text_and_in_html() -> None:
    email = json.loads(some(emails, 1, sizes=(30_000, 30_000))[0].text)
    assert email["headers"]["From"] != ""
    paragraphs = email["text"].split("\n\n")
    assert len(paragraphs) > 5
    assert all(f">{paragraph}</p>" in email["html"] for paragraph in paragraphs)


def test_a_tender_has_lots_in_several_languages() -> None:
    tender = json.loads(some(tenders, 1, sizes=(60_000, 60_000))[0].text)
    assert len(tender["lots"]) == len(tender["documents"]) > 5
    assert {document["language"] for document in tender["documents"]} == {"en", "de", "fr", "pl"}


def test_every_tender_has_letters_beyond_ascii() -> None:
    assert not any(document.text.isascii() for document in some(tenders))


def test_an_amount_keeps_its_last_zero() -> None:
    assert all(re.search(r'"amount": \d+50\.\d\d,', document.text) for document in some(tenders))
    assert any(re.search(r'"amount": \d+50\.[05]0,', document.text) for document in some(tenders))


@pytest.mark.parametrize("sizes", [(SMALLEST_BYTES - 1, 5_000), (5_000, 4_999)])
def test_sizes_that_no_document_can_have_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1024"):
        some(emails, sizes=sizes)


def read(tmp_path: Path, *lines: str | bytes) -> list[Document]:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return list(documents_from_jsonl(path, now=NOW))


def envelope(payload: str) -> str:
    return f'{{"event":"push","name":"a.payload","payload":{payload}}}'


AWKWARD = [
    pytest.param("1.10", id="a_trailing_zero"),
    pytest.param("123456789012345678901234567890", id="a_thirty_digit_integer"),
    pytest.param("9" * 5_000, id="an_integer_longer_than_python_converts"),
    pytest.param("1e400", id="a_number_beyond_a_double"),
    pytest.param("-0.0", id="a_negative_zero"),
    pytest.param(r'"\u00e9\/\"}"', id="escapes"),
    pytest.param('{"b": 1,  "a":2, "b":3}', id="spaces_order_and_a_repeated_key"),
    pytest.param('{"payload": [1.0, {"payload": 2.50}]}', id="a_payload_in_the_payload"),
    pytest.param("null", id="null"),
]


@pytest.mark.parametrize("text", AWKWARD)
def test_a_document_survives_verbatim(tmp_path: Path, text: str) -> None:
    assert [document.text for document in read(tmp_path, text, f'{{"a":{text}}}')] == [
        text,
        f'{{"a":{text}}}',
    ]


@pytest.mark.parametrize("text", AWKWARD)
def test_the_payload_of_an_event_survives_verbatim(tmp_path: Path, text: str) -> None:
    (document,) = read(tmp_path, envelope(text))
    assert (document.kind, document.text) == ("push", text)


def test_the_members_of_an_event_stand_in_any_order_and_spacing(tmp_path: Path) -> None:
    (document,) = read(tmp_path, ' { "pay\\u006coad" :\t[1.0 ] , "name":{"payload": 5},"event" : "x"} \r')
    assert (document.kind, document.text) == ("x", "[1.0 ]")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)  # a busy machine is no failure
@given(st.dictionaries(st.text(), json_values, max_size=4), json_values, st.sampled_from([None, 0, 3]))
def test_any_member_is_cut_out_of_any_object(others: dict[str, object], value: object, indent: int | None) -> None:
    text = json.dumps({**others, "payload": value}, indent=indent)
    assert json.loads(_member_text(text, "payload")) == value


@pytest.mark.parametrize(
    "line",
    [
        '{"event":"push","name":"a","payload":1,"delivered":true}',
        '{"event":"push","payload":1}',
        '{"event":5,"name":"a","payload":1}',
    ],
)
def test_an_object_that_is_not_quite_an_event_is_a_document_of_its_own(tmp_path: Path, line: str) -> None:
    assert [(d.kind, d.text) for d in read(tmp_path, line)] == [("document", line)]


def test_blank_lines_and_windows_line_ends_are_no_part_of_a_document(tmp_path: Path) -> None:
    assert [d.text for d in read(tmp_path, b"\xef\xbb\xbf[1]\r", "", "  \r", "[2]\r", "")] == ["[1]", "[2]"]


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    assert [document.text for document in read(tmp_path, '"a\u2028b\x85c"')] == ['"a\u2028b\x85c"']


def test_documents_of_a_file_are_spread_over_ninety_days(tmp_path: Path) -> None:
    ages = [NOW - document.created_at for document in read(tmp_path, *["{}"] * 300)]
    assert {age.days // 10 for age in ages} == set(range(9))


def test_a_gzipped_file_reads_as_a_plain_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(f'{envelope("1.10")}\n"é"\n'.encode()))
    assert [document.text for document in documents_from_jsonl(path, now=NOW)] == ["1.10", '"é"']


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('{"a": 1', "Expecting ',' delimiter at character 8"),
        ('{"a": 1} {"a": 2}', "Extra data at character 10"),
        ("[NaN]", "NaN is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        (b'"\xff"', "can't decode byte 0xff"),
        ("[" * 200_000, "recursion"),
    ],
)
def test_a_bad_line_is_named_with_its_cause_and_the_mend(tmp_path: Path, line: str | bytes, cause: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, "{}", "", line)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'events.jsonl'}, line 3: ")
    assert cause in message
    assert message.endswith("Put one whole JSON document on each line.")
    assert "\n" not in message


def test_a_missing_file_is_named_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl: No such file or directory\. Name a readable"):
        documents_from_jsonl(tmp_path / "nowhere.jsonl", now=NOW)


def test_a_folder_in_place_of_a_file_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read .* Give a whole \.jsonl"):
        list(documents_from_jsonl(tmp_path, now=NOW))


@pytest.mark.parametrize(
    "content", [gzip.compress(b"{}\n" * 1_000)[:-12], b"{}\n", gzip.compress(b"{}")[:10] + b"\xff" * 9]
)
def test_a_damaged_gzip_file_is_the_users_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"events\.jsonl\.gz: cannot be read"):
        list(documents_from_jsonl(path, now=NOW))
