"""What the fuzzer tries: valid inputs with a few changes of their structure and of their bytes.

Every value that a person or the vendor can fill contains `MARK`, which no error may show.
"""

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from kyc_pipeline.deepxl.jsontext import Json, Number, Object, read_json, write_json

MARK: Final = "zqxmark"
ID_FILE, SELFIE_FILE = f"{MARK}/id.jpg", f"{MARK}/selfie.png"
SUBMISSION: Final = "s-1"
SENT_TAGS: Final = {"companyId": "C-1", "customerId": f"{MARK}-customer"}
SEED: Final = (Path(__file__).parents[1] / "fixtures" / "seed_response.json").read_text(encoding="utf-8")


class Example(NamedTuple):
    """One input. `kind` is a manifest's suffix, `document`, or the call that gets the response."""

    kind: str
    content: bytes


# --- bytes ------------------------------------------------------------------------------------------------

_MOST_COPIED_BYTES: Final = 4_000_000
_TOKENS: Final = [
    *(b'"', b"'", b"\n", b"\r", b",", b";", b"\t", b"[", b"{", b"]", b"}", b":", b"\\", b"\0", b"<", b"&"),
    *(b"NaN", b"1e999", b"null", b"\xef\xbb\xbf", b"\xff\xfe", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"),
    *(b"\\ud800", b"\xed\xa0\x80", b"\x1f\x8b", b"PAR1", b"PARE", b"<!DOCTYPE x>", b"\xff\xd8", b"\xff\xd9"),
]


def _affordable(times: int, piece: bytes) -> int:
    """`times`, or fewer: copies of copies would otherwise take gigabytes before anything is tested."""
    return min(times, _MOST_COPIED_BYTES // max(1, len(piece)) + 1)


@st.composite
def _edits(draw: st.DrawFn, content: bytes, most: int = 4) -> bytes:
    """`content` with pieces removed, replaced, repeated or put elsewhere."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, 1 << 20)) % (len(data) + 1)
        until = at + draw(st.sampled_from([0, 1, 1, 2, 4, 8, 64, 4096]))
        piece = draw(
            st.one_of(st.binary(max_size=4), st.sampled_from(_TOKENS), st.just(bytes(data[at:until])))
        )
        data[at:until] = piece * _affordable(draw(st.sampled_from([1, 1, 1, 2, 50, 3000])), piece)
    return bytes(data)


# --- manifests --------------------------------------------------------------------------------------------

_ODD: Final = [
    *("", " ", "\0", "\ufeff", "\u202e", "\x1b[31m", "\x85", "\u2028", "=1+1", '"', '""', "a\nb", "\r"),
    "a,b;c",
    *("é" * 100, "x" * 70_000, "../../x", "/etc/passwd", "a\0b", ".", "NaN", "1e999", "null", "\\N", "{}"),
    "[]",
    *('{"a":', "[" * 3000, '{"a":{"b":1}}', '{"a":"1","a":"2"}', '{"submissionId":"x"}', '{"a":"\\ud800"}'),
    *("2024-02-30T10:00:00Z", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "2024-09-01"),
    "2024-09-01T10:00:00.1234567890123Z",
]
_TEXTS: Final = st.one_of(
    st.sampled_from(_ODD),
    st.sampled_from(_ODD).map(lambda text: MARK + text),
    st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: MARK + text),
)
_GOOD: Final = {
    "submission_id": f"{MARK}-1",
    "id_file": ID_FILE,
    "selfie_file": SELFIE_FILE,
    "tags": json.dumps({"customerId": MARK}),
    "submitted_at": "2024-09-01T10:00:00Z",
}
_GOOD_LABEL: Final = {
    "submission_id": f"{MARK}-1",
    "label": "fraud",
    "source": "review",
    "decided_at": "2024-09-01T10:00:00Z",
    "attack": "presentation",
    "weight": "12.5",
    "stratum": "s-01",
}
Cells = Mapping[str, str]
"""Column → a good value."""
_MORE_COLUMNS: Final = st.sampled_from(
    ["tag.customerId", f"tag.{MARK}", "tag.", "Tag . x", f"{MARK} column", "Submission ID", "", " ", "\ufeff"]
)


@st.composite
def _rows(draw: st.DrawFn, good: Cells) -> tuple[list[str], list[list[str]]]:
    """Names and rows: most cells are good, and each row has another id."""
    names = [*good, *draw(st.lists(_MORE_COLUMNS, max_size=3))]
    rows = []
    for index in range(draw(st.integers(0, 5))):
        row = [good.get(name, MARK) for name in names]
        row[0] += str(index)
        for _ in range(draw(st.integers(0, 2))):
            row[draw(st.integers(0, len(row) - 1))] = draw(_TEXTS)
        rows.append(row)
    return names, rows


@st.composite
def _csv(draw: st.DrawFn, good: Cells) -> bytes:
    names, rows = draw(_rows(good))
    separator, end = draw(st.sampled_from(",;\t|")), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    quoted = draw(st.booleans())

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if quoted or set(text) & set('",;\t|\n\r') else text

    text = "".join(separator.join(map(cell, row)) + end for row in (names, *rows))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"]))
    return text.encode(encoding, "replace")


@st.composite
def _jsonl(draw: st.DrawFn, good: Cells) -> bytes:
    names, rows = draw(_rows(good))
    lines = []
    for row in rows:
        value: Json = Object([(name, cell) for name, cell in zip(names, row, strict=True)])
        lines.append(write_json(draw(_changed_json(value))))
    return draw(st.sampled_from(["\n", "\r\n"])).join([*lines, ""]).encode("utf-8", "replace")


def _nested(texts: list[str]) -> Any:
    return pa.array([[{"k": [text]}] for text in texts])


_ARRAYS: Final[list[Callable[[list[str]], Any]]] = [
    pa.array,
    lambda texts: pa.array(texts, pa.large_string()),
    lambda texts: pa.array([text.encode() for text in texts], pa.binary()),
    lambda texts: pa.array([b"\xff" + text.encode() for text in texts], pa.binary()),
    lambda texts: pa.array(texts).dictionary_encode(),
    lambda texts: pa.array([[(text, text)] for text in texts], pa.map_(pa.string(), pa.string())),
    lambda texts: pa.array([{"k": text, MARK: None} for text in texts]),
    lambda texts: pa.array([[text] for text in texts]),
    _nested,
    lambda texts: pa.nulls(len(texts)),
    lambda texts: pa.array(range(len(texts)), pa.int64()),
    lambda texts: pa.array([2**63 - 1] * len(texts), pa.timestamp("ns", "UTC")),
    lambda texts: pa.array([-(2**50)] * len(texts), pa.timestamp("s")),
    lambda texts: pa.array([float("nan")] * len(texts)),
    lambda texts: pa.array([True] * len(texts)),
    lambda texts: pa.array([2**31 - 1] * len(texts), pa.date32()),
    lambda texts: pa.array([b"x" * 16] * len(texts), pa.binary(16)),
]


@st.composite
def _parquet(draw: st.DrawFn, good: Cells) -> bytes:
    names, rows = draw(_rows(good))
    columns = [pa.array([row[index] for row in rows], pa.string()) for index in range(len(names))]
    for _ in range(draw(st.integers(0, 3))):
        index = draw(st.integers(0, len(names) - 1))
        columns[index] = draw(st.sampled_from(_ARRAYS))([row[index] for row in rows])
    target = io.BytesIO()
    pq.write_table(
        pa.Table.from_arrays(columns, names),
        target,
        compression=draw(st.sampled_from(["zstd", "none", "gzip"])),
        row_group_size=draw(st.sampled_from([1, 1000])),
    )
    return target.getvalue()


_CELLS: Final = st.one_of(
    st.sampled_from([0, 1.5, True, None, "=1+1", "=HYPERLINK(A1)"]),
    _TEXTS.map(lambda text: openpyxl.cell.cell.ILLEGAL_CHARACTERS_RE.sub("", text)[:32_000]),
)


@st.composite
def _xlsx(draw: st.DrawFn, good: Cells) -> bytes:
    names, rows = draw(_rows(good))
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    for row in (names, *rows):
        shown = openpyxl.cell.cell.ILLEGAL_CHARACTERS_RE
        sheet.append([shown.sub("", cell)[:32_000] for cell in row])
    for _ in range(draw(st.integers(0, 2))):
        sheet.cell(draw(st.integers(1, 6)), draw(st.integers(1, 8)), draw(_CELLS))
    target = io.BytesIO()
    book.save(target)
    changed = io.BytesIO()
    with zipfile.ZipFile(target) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as new:
        parts = old.namelist()
        edited = draw(st.sampled_from([None, *parts]))
        for part in parts:
            content = old.read(part)
            new.writestr(part, draw(_edits(content)) if part == edited else content)
    return changed.getvalue()


@st.composite
def manifests(draw: st.DrawFn, good: Cells = _GOOD) -> Example:
    """A manifest of any format; by default one of submissions."""
    kind, strategy = draw(
        st.sampled_from(
            [
                *(("csv", _csv(good)), ("csv.gz", _csv(good)), ("tsv", _csv(good)), ("jsonl", _jsonl(good))),
                *(
                    ("jsonl.gz", _jsonl(good)),
                    ("parquet", _parquet(good)),
                    ("parquet", _parquet(good)),
                    ("xlsx", _xlsx(good)),
                ),
            ]
        )
    )
    content = draw(strategy)
    if draw(st.booleans()):
        content = draw(_edits(content))
    if kind.endswith(".gz"):
        content = gzip.compress(content, 1)
        if draw(st.integers(0, 3)) == 0:
            content = draw(_edits(content, 2))
    return Example(kind, content)


def labels() -> st.SearchStrategy[Example]:
    """A manifest of labels of any format."""
    return manifests(_GOOD_LABEL)


_HEADER: Final = b"submission_id,id_file,selfie_file\n"
_LABEL_HEADER: Final = b"submission_id,label,source,decided_at\n"
_BLOCK: Final = 1 << 24


def _packed(start: bytes, filler: bytes) -> bytes:
    """A gzip file of 670 MB: `start`, then the filler again and again."""
    return gzip.compress(start, 1) + gzip.compress(filler * (_BLOCK // len(filler)), 1) * 40


def _long_dictionary() -> bytes:
    """One text of 63 KB in 8,192 rows: half a gigabyte in a few kilobytes."""
    rows = 8_192
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([MARK * 9_000]))
    target = io.BytesIO()
    short = pa.array(["a"] * rows)
    pq.write_table(pa.table({"submission_id": column, "id_file": short, "selfie_file": short}), target)
    return target.getvalue()


def _long_text() -> bytes:
    target = io.BytesIO()
    table = pa.table({"submission_id": ["x" * 400_000_000], "id_file": ["a"], "selfie_file": ["b"]})
    pq.write_table(table, target, compression="zstd", write_statistics=False, use_dictionary=False)
    return target.getvalue()


def _sparse_lines() -> bytes:
    row = dict.fromkeys(["submission_id", "id_file", "selfie_file"], MARK)
    wide = [json.dumps(row | {f"tag.{line}.{key}": "1" for key in range(2000)}) for line in range(20)]
    return "\n".join([*wide, *[json.dumps(row)] * 4_000]).encode()


def manifest_bombs() -> Iterator[Example]:
    """Small manifests that unpack to much more than the memory limit, or cost much per byte."""
    yield from _bombs(_HEADER)
    yield Example("parquet", _long_dictionary())
    yield Example("parquet", _long_text())


def label_bombs() -> Iterator[Example]:
    """Those that are text, with the columns of labels."""
    yield from _bombs(_LABEL_HEADER)


def _bombs(header: bytes) -> Iterator[Example]:
    yield Example("csv.gz", _packed(header, b"a"))
    yield Example("csv.gz", _packed(header, b"a" * 255 + b"\n"))
    yield Example("jsonl.gz", _packed(b'{"a":"', b"a"))
    yield Example("jsonl", _sparse_lines())
    yield Example("jsonl", b"[" * 3_000_000)
    yield Example("csv", header[:-1] + b",tag.x" * 90_000 + b"\n" + b"," * 90_002)


# --- documents --------------------------------------------------------------------------------------------


def _picture() -> Image.Image:
    picture = Image.frombytes("L", (160, 120), random.Random(0).randbytes(160 * 120)).convert("RGB")
    picture.paste("white", (10, 10, 60, 60))
    return picture


def _saved(image_format: str, **options: Any) -> bytes:
    target = io.BytesIO()
    _picture().save(target, image_format, **options)
    return target.getvalue()


def _document_seeds() -> list[bytes]:
    exif, info = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x010E] = MARK
    info.add_text("Author", MARK, zip=True)
    brand = b"\0\0\0\x18ftyp%s\0\0\0\0%sisom"
    return [
        _saved("JPEG", exif=exif, comment=MARK),
        _saved("JPEG", progressive=True, exif=exif),
        _saved("JPEG", restart_marker_blocks=4),
        _saved("PNG", pnginfo=info),
        _saved("WEBP", exif=exif),
        _saved("WEBP", lossless=True),
        _saved("TIFF"),
        _saved("GIF"),
        f"%PDF-1.7\n{MARK}\n%%EOF".encode(),
        brand % (b"heic", b"mif1") + MARK.encode() * 9,
        brand % (b"mif1", b"heic") + MARK.encode() * 9,
        brand % (b"mp42", b"mp41") + MARK.encode() * 9,
        brand % (b"qt  ", b"qt  ") + b"\0\0\0\x10wide\0\0\0\0mdat",
    ]


DOCUMENTS: Final = _document_seeds()


def _parts(content: bytes) -> list[bytes]:
    """Header and segments of a JPEG, or chunks of a PNG; else blocks of bytes."""
    if content.startswith(b"\xff\xd8"):
        cuts = [
            at for at in range(len(content) - 1) if content[at] == 0xFF and content[at + 1] not in (0, 0xFF)
        ]
    elif content.startswith(b"\x89PNG"):
        cuts, at = [], 8
        while at < len(content):
            cuts.append(at)
            at += 12 + int.from_bytes(content[at : at + 4])
    else:
        cuts = list(range(12, len(content), 64))
    return [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]


def _png_chunk(part: bytes) -> bytes:
    """The chunk with the checksum of its present content, so that the decoder goes on."""
    return part[:-4] + struct.pack(">I", zlib.crc32(part[4:-4]))


@st.composite
def documents(draw: st.DrawFn) -> Example:
    """A document of any type, with segments or chunks that are changed, repeated or out of order."""
    content = draw(st.sampled_from(DOCUMENTS))
    parts = _parts(content)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(parts) - 1))
        part = draw(_edits(parts[at], 2)) if draw(st.booleans()) else parts[at]
        if at and content.startswith(b"\x89PNG") and len(part) > 12:
            part = _png_chunk(part)
        times = _affordable(draw(st.sampled_from([0, 1, 1, 2, 300, 3000])), part)
        parts[at : at + draw(st.integers(0, 1))] = [part] * times
        if not parts:
            break
    content = b"".join(parts)
    return Example("document", draw(_edits(content, 2)) if draw(st.booleans()) else content)


def _scans(count: int) -> bytes:
    """A progressive JPEG with its scans `count` times."""
    parts = _parts(DOCUMENTS[1])
    first = next(index for index, part in enumerate(parts) if part.startswith(b"\xff\xda"))
    return b"".join([*parts[:first], *parts[first:-1] * count, parts[-1]])


def _large_png(width: int, height: int, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    text = chunk(b"zTXt", b"k\0\0" + extra) if extra else b""
    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + header + text + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def document_bombs() -> Iterator[Example]:
    """Small images that cost much to decode."""
    yield Example("document", _scans(400))
    yield Example("document", _large_png(9_000, 9_000))
    yield Example("document", _large_png(30_000, 3_000)[:60_000])
    yield Example("document", _large_png(8, 8, zlib.compress(bytes(100_000_000), 1)))
    yield Example("document", b"%PDF-" + bytes(1_000_000))


# --- responses --------------------------------------------------------------------------------------------


def _deep(levels: int) -> Json:
    value: Json = []
    for _ in range(levels):
        value = [value]
    return value


_JSON_VALUES: Final[list[Callable[[], Json]]] = [
    *(lambda text=text: MARK + text for text in _ODD),
    *(
        lambda literal=literal: Number(literal)
        for literal in ("0", "-0.0", "1e999", "1" * 5000, "9007199254740993")
    ),
    *(
        lambda literal=literal: Number(literal)
        for literal in ("NaN", "-Infinity", "1e-400", str(2**63), "97", "0.5")
    ),
    *(lambda value=value: value for value in (None, True, False, "\ud800", "PASS", SUBMISSION)),
    list,
    lambda: Object([]),
    lambda: Object([(MARK, MARK), (MARK, Number("1"))]),
    lambda: _deep(70),
    lambda: _deep(3000),
    lambda: Object([("landmarks", [Number("1"), [Number("2")]]), (f"{MARK}Bounding-Box", MARK)]),
]
_KEYS: Final = [
    *("verificationId", "verified", "result", "tags", "files", "technicalChecks", "modelResults", "type"),
    "status",
    *("confidence", "timestamp", "timestampISO", "name", "value", "idFaces", "selfieFaces", MARK, ""),
    *("\ud800", "a.b"),
]


def _containers(value: Json) -> list["Object | list[Json]"]:
    """Every object and list in `value`."""
    found: list[Object | list[Json]] = []
    pending: list[Json] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Object):
            found.append(item)
            pending += [member for _, member in item.members]
        elif isinstance(item, list):
            found.append(item)
            pending += item
    return found


def _copied(value: Json) -> Json:
    if isinstance(value, Object):
        return Object([(name, _copied(member)) for name, member in value.members])
    return [_copied(item) for item in value] if isinstance(value, list) else value


@st.composite
def _changed_json(draw: st.DrawFn, value: Json, most: int = 3) -> Json:
    """`value` with members replaced, removed, repeated, renamed or added."""
    value = _copied(value)
    for _ in range(draw(st.integers(0, most))):
        containers = _containers(value)
        if not containers:
            return draw(st.sampled_from(_JSON_VALUES))()
        container = draw(st.sampled_from(containers))
        members: list[Any] = container.members if isinstance(container, Object) else container
        is_object = isinstance(container, Object)
        at = draw(st.integers(0, len(members)))
        new = draw(st.sampled_from(_JSON_VALUES))()
        change = draw(st.sampled_from(["value", "value", "remove", "twice", "key", "add"]))
        if change == "add" or at == len(members):
            members.insert(at, (draw(st.sampled_from(_KEYS)), new) if is_object else new)
        elif change == "value":
            members[at] = (members[at][0], new) if is_object else new
        elif change == "remove":
            del members[at]
        elif change == "twice":
            members[at:at] = [members[at]] * draw(st.sampled_from([1, 2, 500]))
        elif is_object:
            members[at] = (draw(st.sampled_from(_KEYS)), members[at][1])
    return value


def _record() -> Object:
    """A correct record of the submission, with a mark in each of the vendor's free texts."""
    seed = json.loads(SEED)["result"]
    seed["tags"] = [
        {"name": name, "value": value} for name, value in {**SENT_TAGS, "submissionId": SUBMISSION}.items()
    ]
    for item in seed["files"]:
        item["fileName"] = item["url"] = MARK
    for check in seed["modelResults"]["technicalChecks"]:
        check["details"] = f"{MARK} details"
    record = read_json(json.dumps(seed))
    assert isinstance(record, Object)
    return record


_RECORD: Final = _record()
_ERROR: Final = read_json(json.dumps({"detail": [{"loc": ["body", MARK], "msg": MARK}], "message": MARK}))
_CODINGS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": lambda body: gzip.compress(body, 1),
    "deflate": lambda body: zlib.compress(body, 1),
    "raw": lambda body: zlib.compress(body, 1, -15),
}
_STATUSES: Final = [
    *([200] * 24),
    *(201, 204, 206, 302, 400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 999),
]
_ENCODING_NAMES: Final = ["", "identity", "gzip", "gzip, gzip", "deflate", "br", "x-gzip", MARK]
_RETRY_AFTER: Final = ["", "5", "-1", "1e9", "9" * 400, "Wed, 21 Oct 2099 07:28:00 GMT", MARK]


def _response(status: str, headers: Sequence[str], body: bytes) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1") + body


@st.composite
def responses(draw: st.DrawFn) -> Example:
    """All bytes of an HTTP response, to a verification or to a look-up."""
    kind = draw(st.sampled_from(["verify", "verify", "find"]))
    status = draw(st.sampled_from(_STATUSES))
    value: Json = _RECORD
    if kind == "find":
        others = draw(st.integers(0, 2))
        total = draw(st.sampled_from([1, 1, 1, others + 1, 0, 500]))
        value = Object(
            [("totalCount", Number(str(total))), ("count", Number("1")), ("data", [_RECORD] * (others + 1))]
        )
    elif status < 300:
        value = Object([("result", _RECORD)])
    else:
        value = _ERROR
    text = write_json(draw(_changed_json(value)))
    body = text.encode(draw(st.sampled_from(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "utf-32-be"])), "replace")
    if draw(st.integers(0, 3)) == 0:
        body = draw(_edits(body))
    headers = [f"Content-Type: {draw(st.sampled_from(['application/json', 'text/html', MARK]))}"]
    if draw(st.integers(0, 3)) == 0:
        for coding in draw(st.lists(st.sampled_from(list(_CODINGS)), max_size=3)):
            body = _CODINGS[coding](body)
        body = draw(_edits(body, 1))
        headers.append(f"Content-Encoding: {draw(st.sampled_from(_ENCODING_NAMES))}")
    length = len(body) + draw(st.sampled_from([0] * 12 + [-1, 1, 10**20]))
    headers += [
        f"Content-Length: {length}",
        f"Retry-After: {draw(st.sampled_from(_RETRY_AFTER))}",
        f"X-{MARK}: {MARK}",
    ]
    whole = _response(f"{status} {MARK}", headers, body)
    return Example(kind, draw(_edits(whole, 1)) if draw(st.integers(0, 7)) == 0 else whole)


def response_bombs() -> Iterator[Example]:
    """Responses that unpack to much more than the limit, or cost much per byte."""
    zeros = _packed(b"{", b"\0")
    record = write_json(Object([("result", _RECORD)]))[:-2]
    bodies: list[tuple[str, bytes]] = [
        ("gzip", zeros),
        ("gzip, gzip", gzip.compress(zeros)),
        ("", (record + ',"x":' + "[" * 60_000 + "]" * 60_000 + "}}").encode()),
        ("", (record + ',"landmarks":[[1,2]]' * 100_000 + "}}").encode()),
        ("", (record + ',"x":"' + "\\u0041" * 600_000 + '"}}').encode()),
        ("", b'"idFaces"' + b"[" * 3_000_000),
        ("", b'{"result":{"face' + b'"' * 3_000_000),
        ("", (record + ',"x":' + "9" * 3_000_000 + "}}").encode()),
        ("", b"land" + b"-" * 3_000_000),
    ]
    for encoding, body in bodies:
        headers = [f"Content-Encoding: {encoding}", f"Content-Length: {len(body)}"]
        for kind in ("verify", "find"):
            yield Example(kind, _response("200 OK", headers, body))
