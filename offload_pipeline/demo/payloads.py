"""Payloads for `offload demo`: made-up webhooks, e-mails and tenders, or a JSONL file of the user's.

Documents are JSON text joined from prebuilt fragments, so that 200 MB take a second and memory does not
depend on the count. Nothing here knows a database or a store.
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import NoReturn

from offload_pipeline.errors import UserError

SPREAD = timedelta(days=90)
SMALLEST_BYTES = 1024  # an e-mail's headers and attachments alone take up to about 900
FRAGMENTS = 500  # about 300 kB: repeats within gzip's window of 32 kB stay rare, and do not flatter the ratio
PROSE_WORDS = 4000  # about 25 kB: far longer than the largest fragment, hence than any gap to fill

_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo one, fill an interval evenly however many are taken
_ENVELOPE_MEMBERS = {"event", "name", "payload"}
_JSON_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Document:
    """One row of the demo: `text` is valid JSON text, exactly as it should reach PostgreSQL."""

    kind: str
    created_at: datetime
    text: str


def webhooks(count: int, *, seed: int, now: datetime, min_bytes: int, max_bytes: int) -> Iterator[Document]:
    """Events as GitHub and Stripe send them, `min_bytes` to `max_bytes` of UTF-8 each (log-uniform)."""
    return _documents((_PUSH, _INVOICE), count, seed, now, (min_bytes, max_bytes))


def emails(count: int, *, seed: int, now: datetime, min_bytes: int, max_bytes: int) -> Iterator[Document]:
    """Inbound e-mails: headers, the text and HTML bodies, what is known of the attachments."""
    return _documents((_EMAIL,), count, seed, now, (min_bytes, max_bytes))


def tenders(count: int, *, seed: int, now: datetime, min_bytes: int, max_bytes: int) -> Iterator[Document]:
    """Public procurement notices: lots, CPV codes, exact amounts, documents in four languages."""
    return _documents((_TENDER,), count, seed, now, (min_bytes, max_bytes))


def documents_from_jsonl(path: Path, *, now: datetime) -> Iterator[Document]:
    """The documents of FILE.jsonl or FILE.jsonl.gz, one a line, each as it stands there, numbers and all.

    A line {"event", "name", "payload"} stands for its payload, with the event as kind. Raises `UserError`.
    """
    try:
        path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Name a readable .jsonl or .jsonl.gz file.") from error
    return _read_lines(path, now)


def _leave_unread(_number: str) -> None:
    """Python would round some numbers, and refuses to convert integers of over 4,300 digits."""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# It only checks and measures: no number that it has read is ever printed again.
_DECODER = json.JSONDecoder(parse_int=_leave_unread, parse_float=_leave_unread, parse_constant=_refuse_constant)


def _read_lines(path: Path, now: datetime) -> Iterator[Document]:
    index = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _document(path, number, line, _created_at(index, now))
                    index += 1
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}). Give a whole .jsonl or .jsonl.gz file.") from error


def _document(path: Path, number: int, line: bytes, created_at: datetime) -> Document:
    try:
        text = line.decode("utf-8-sig").strip(" \t\r\n")
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        at = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        raise UserError(f"{path}, line {number}: {at}. Put one whole JSON document on each line.") from error
    if isinstance(value, dict) and value.keys() == _ENVELOPE_MEMBERS and isinstance(value["event"], str):
        return Document(value["event"], created_at, _member_text(text, "payload"))
    return Document("document", created_at, text)


def _member_text(text: str, name: str) -> str:
    """The member's value as it stands in an object that is known to be valid JSON and to have the member."""
    position = len("{")
    while True:
        key, position = _DECODER.raw_decode(text, _past_space(text, position))
        start = _past_space(text, _past_space(text, position) + len(":"))
        _, position = _DECODER.raw_decode(text, start)
        if key == name:
            return text[start:position]
        position = _past_space(text, position) + len(",")


def _past_space(text: str, position: int) -> int:
    match = _JSON_SPACE.match(text, position)
    return match.end() if match else position


@dataclass(frozen=True)
class _Template:
    """JSON text in which "{hex 40}" is made afresh, and "{lots}" a slot; an item has a piece for each slot.

    A piece may quote an earlier one of its item. Spaced as PostgreSQL prints jsonb, so that sizes agree.
    """

    kind: str
    envelope: str
    item: dict[str, str]


@dataclass(frozen=True)
class _Pool:
    template: _Template
    fragments: list[tuple[dict[str, str], int]]  # a finished item, and its size in bytes
    largest_bytes: int
    prose: str


def _documents(
    templates: tuple[_Template, ...], count: int, seed: int, now: datetime, sizes: tuple[int, int]
) -> Iterator[Document]:
    if not SMALLEST_BYTES <= sizes[0] <= sizes[1]:
        raise ValueError(f"sizes must be ordered and at least {SMALLEST_BYTES} bytes, not {sizes}")
    rng = Random(f"{templates[0].kind} {seed}")  # noqa: S311 - reproducible made-up data, no secret
    pools = [_pool(template, rng) for template in templates]
    for index in range(count):
        pool = rng.choice(pools)
        created_at = _created_at(index, now)
        target_bytes = round(math.exp(rng.uniform(*map(math.log, sizes))))
        yield Document(pool.template.kind, created_at, _text(pool, rng, created_at, target_bytes))


def _created_at(index: int, now: datetime) -> datetime:
    return now.astimezone(UTC) - SPREAD * ((index + 1) * _GOLDEN % 1)


def _pool(template: _Template, rng: Random) -> _Pool:
    items = [_item(template.item, rng) for _ in range(FRAGMENTS)]
    sizes = [_size_bytes(item) for item in items]
    return _Pool(template, list(zip(items, sizes, strict=True)), max(sizes), _words("en", rng, PROSE_WORDS))


def _size_bytes(item: dict[str, str]) -> int:
    return sum(len((piece + _separator(slot)).encode()) for slot, piece in item.items())


def _item(template: dict[str, str], rng: Random) -> dict[str, str]:
    pieces: dict[str, str] = {}
    language = rng.choice(list(_VOCABULARY))
    for slot, piece in template.items():
        text = piece.replace("{local ", f"{{{language} ").replace("{language}", language)
        pieces[slot] = _SLOT.sub(lambda match: pieces[match[1]], _made(text, rng))
    return pieces


def _text(pool: _Pool, rng: Random, created_at: datetime, target_bytes: int) -> str:
    """The envelope with its slots filled: whole fragments while they fit, then prose for the rest."""
    parts = _SLOT.split(_made(pool.template.envelope, rng).replace("{time}", created_at.isoformat()))
    gap_bytes = target_bytes - sum(len(part.encode()) for part in parts[::2])
    picked = []
    while gap_bytes > pool.largest_bytes:
        item, size_bytes = pool.fragments[int(rng.random() * FRAGMENTS)]
        picked.append(item)
        gap_bytes -= size_bytes
    start = rng.randrange(len(pool.prose) // 2)
    prose = pool.prose[start : start + max(0, gap_bytes)]
    for place, slot in enumerate(parts[1::2]):
        pieces = [prose] if slot == "prose" else [item[slot] for item in picked]
        parts[2 * place + 1] = _separator(slot).join(pieces)
    return "".join(parts)


def _separator(slot: str) -> str:
    return {"text": r"\n\n", "html": ""}.get(slot, ", ")


def _made(template: str, rng: Random) -> str:
    return _MARK.sub(lambda match: _MAKERS[match[1]](rng, int(match[2])), template)


def _words(language: str, rng: Random, count: int) -> str:
    return " ".join(rng.choices(_VOCABULARY[language], k=count))


def _sentence(language: str) -> Callable[[Random, int], str]:
    return lambda rng, most: _words(language, rng, rng.randint((most + 2) // 3, most))


def _up_to(template: str) -> Callable[[Random, int], str]:
    return lambda rng, most: ", ".join(_made(template, rng) for _ in range(rng.randint(0, most)))


def _one_of(*texts: str) -> Callable[[Random, int], str]:
    return lambda rng, count: ", ".join(rng.sample(texts, count))


_SLOT = re.compile(r"\{([a-z]+)\}")
_MARK = re.compile(r"\{([a-z]+) ([0-9]+)\}")
_WORDS = {
    "en": "the the the of of to to and and in a a for is on with that by this we be are from as at it your "
    "our not please invoice order payment delivery contract account update release request review "
    "branch merge deploy build test failed passed retry error timeout service database migration index "
    "schema customer supplier quantity price discount schedule meeting agenda tomorrow Monday attached "
    "regarding thanks forward confirm approve document version change remove support ticket issue fixes "
    "because before after without performance memory latency worker queue message certificate renewal "
    "budget quarter report signed office transport public works tender award lot estimated value deadline",
    "de": "die die der der und und für in von mit zur über auf Straße Lieferung Vergabe Gebäude Maßnahme Los "
    "Ausführung Angebot Öffnung Prüfung Brücke Schlüssel Kündigung Gemeinde öffentlicher Auftrag "
    "Verfügung Frist Wert Zuschlag Kriterien Wartung Kläranlage Planung Überwachung gemäß Bieter €",
    "fr": "le la les de des du et et à pour dans marché travaux école bâtiment réhabilitation étude prévu "
    "délai dépôt critères attribution montant estimé régie collectivité réseau énergie février août "
    "côté forêt lot fourniture prestataire français déchets collecte entretien voirie procédure €",
    "pl": "i i w na do z oraz zamówienie publiczne usługi dostawa robót budowlanych gmina Łódź przebudowa "
    "drogi oświetlenie ulicy szkoły wartość złotych część oferty wykonawca kryteria udzielenia "
    "świadczenie próg źródło ścieków modernizacja sieć wodociągowa termin składania łącznie umowa zł",
}
_VOCABULARY = {language: words.split() for language, words in _WORDS.items()}
_CENTS = ("00", "50", "99")
_MAKERS: dict[str, Callable[[Random, int], str]] = {
    **{language: _sentence(language) for language in _WORDS},
    "hex": lambda rng, digits: f"{rng.getrandbits(4 * digits):0{digits}x}",
    "int": lambda rng, digits: str(rng.randrange(10 ** (digits - 1), 10**digits)),
    "amount": lambda rng, digits: f"{rng.randrange(1, 10 ** (digits - 2))}50.{rng.choice(_CENTS)}",
    "bool": lambda rng, _: rng.choice(("true", "false")),
    "slug": lambda rng, count: "/".join(rng.choices(_VOCABULARY["en"], k=count)),
    "person": _one_of("ada.byrne", "zoe.weber", "jan.nowak", "marie.roy", "eoin.walsh", "nikos.pappas"),
    "buyer": _one_of("Landkreis Göttingen", "Ville de Besançon", "Gmina Łódź", "Comhairle Mhaigh Eo"),
    "cpv": _one_of('"45233140-2"', '"72000000-5"', '"33100000-1"', '"90500000-2"', '"45214200-2"'),
    "paths": _up_to('"src/{slug 3}.py"'),
    "attachments": _up_to(
        '{"filename": "{slug 1}-{int 4}.pdf", "content_type": "application/pdf", "size": {int 7}, "sha256": "{hex 64}"}'
    ),
}

_PUSH = _Template(
    "push",
    '{"event": "push", "delivery": "{hex 32}", "ref": "refs/heads/{slug 1}-{int 4}", "before": "{hex 40}", '
    '"after": "{hex 40}", "repository": {"id": {int 9}, "name": "octo-org/{slug 1}", "private": {bool 1}, '
    '"pushed_at": "{time}"}, "sender": {"login": "{person 1}", "id": {int 8}, "type": "User"}, '
    '"commits": [{commits}], "body": "{prose}"}',
    {
        "commits": '{"id": "{hex 40}", "tree_id": "{hex 40}", "distinct": true, "message": "{en 24}", '
        '"url": "https://api.example.com/repos/octo-org/{slug 1}/commit/{hex 40}", '
        '"author": {"name": "{person 1}", "email": "{person 1}@example.com", "username": "{person 1}"}, '
        '"committer": {"name": "{person 1}", "email": "{person 1}@example.com", "username": "{person 1}"}, '
        '"added": [{paths 3}], "removed": [], "modified": [{paths 6}]}',
    },
)
_INVOICE = _Template(
    "invoice.paid",
    '{"id": "evt_{hex 24}", "object": "event", "type": "invoice.paid", "created": "{time}", "live": true, '
    '"data": {"object": {"id": "in_{hex 24}", "object": "invoice", "customer": "cus_{hex 14}", '
    '"currency": "eur", "total": {int 6}, "lines": {"object": "list", "data": [{lines}]}, '
    '"description": "{prose}"}}}',
    {
        "lines": '{"id": "il_{hex 24}", "object": "line_item", "amount": {int 5}, "currency": "eur", '
        '"description": "{en 30}", "discountable": true, "price": {"id": "price_{hex 24}", "unit_amount": '
        '{int 5}, "tax_behavior": "unspecified", "tiers": null}, "proration": {bool 1}, "quantity": {int 1}, '
        '"tax_rates": [{"display_name": "VAT", "percentage": 23.0, "inclusive": false, "country": "IE"}]}',
    },
)
_EMAIL = _Template(
    "email.received",
    '{"message_id": "<{hex 32}@mail.example.com>", "headers": {"From": "{person 1}@example.com", '
    '"To": "{person 1}@example.org", "Date": "{time}", "Subject": "{en 9}", '
    '"Received": "from mx{int 1}.example.com by mail.example.org with ESMTPS id {hex 16}"}, '
    '"text": "{text}", "html": "<!doctype html><html><body>{html}</body></html>", '
    '"attachments": [{attachments 2}], "disclaimer": "{prose}"}',
    {
        "text": "{en 90} {int 6}.",
        "html": r"<p style=\"margin:0 0 16px;font-family:Arial,sans-serif;font-size:14px\">{text}</p>",
    },
)
_TENDER = _Template(
    "tender.published",
    '{"notice_id": "{int 6}-{int 4}", "title": "{de 9} / {fr 9}", "buyer": {"name": "{buyer 1}", '
    '"registration": "{hex 12}"}, "published_at": "{time}", "cpv_codes": [{cpv 2}], "estimated_value": '
    '{"amount": {amount 7}, "currency": "EUR"}, "lots": [{lots}], "documents": [{documents}], '
    '"notes": "{prose}"}',
    {
        "lots": '{"lot_id": "LOT-{int 4}", "title": "{local 8}", "cpv_codes": [{cpv 2}], "value": {"amount": '
        '{amount 6}, "currency": "EUR"}, "award_criteria": [{"name": "price", "weight": {int 2}}]}',
        "documents": '{"language": "{language}", "title": "{local 6}", '
        '"url": "https://tenders.example.eu/{hex 32}.pdf", "text": "{local 80}"}',
    },
)
