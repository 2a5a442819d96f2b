"""Recognize files and folders that udpm wrote, before replacing one: by content, and by marks that show edits."""

from __future__ import annotations

import hashlib
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udpm.core.containers import members, read_header
from udpm.core.errors import UserError
from udpm.core.files import leading, sha256
from udpm.core.folders import FolderKind
from udpm.core.reading import read_bytes

CSV = re.compile(rb"udpm; csv SHA-256 ([0-9a-f]{64})")
OWN = re.compile(rb"udpm; (?:csv SHA-256 [0-9a-f]{64}; )?file SHA-256 ([0-9a-f]{64})")
"""Mark with a digest of the file itself, which earlier versions did not write."""
EMPTY = "0" * 64
LARGEST = 1 << 28
"""Maximal bytes of a marked file. A larger one is not read, and counts as edited."""
TAIL = 1 << 14
"""Bytes at the end of a file that may contain its mark; in a PDF, a table of all its objects follows the mark."""
PNG = b"\x89PNG"


def mark(csv: str | None = None) -> str:
    """Return the mark of a file written with this .csv, if any. `seal` fills in the digest of the rest of the file."""
    of_csv = "" if csv is None else f"csv SHA-256 {hashlib.sha256(csv.encode()).hexdigest()}; "
    return f"udpm; {of_csv}file SHA-256 {EMPTY}"


def seal(data: bytes) -> bytes:
    """Fill in the digest in a file's mark: the SHA-256 of all its other bytes.

    In a PNG the mark ends a text chunk, whose checksum follows; the checksum is updated and left out of the digest.
    """
    found = re.search(rb"file SHA-256 (0{64})", data)
    if found is None:
        raise ValueError("no mark to fill in")
    start, end = found.span(1)
    own = _digest(data, start, end).encode()
    if data.startswith(PNG):
        chunk = data[data.rindex(b"tEXt", 0, start) : start] + own
        return data[:start] + own + struct.pack(">I", zlib.crc32(chunk)) + data[end + 4 :]
    return data[:start] + own + data[end:]


def seal_text(text: str) -> str:
    """`seal` a text."""
    return seal(text.encode()).decode()


def seal_file(path: Path) -> None:
    """`seal` a file that a library wrote."""
    path.write_bytes(seal(path.read_bytes()))


def is_unedited(path: Path) -> bool:
    """Return whether a file is unchanged since `seal`."""
    try:
        data = read_bytes(path, "file", LARGEST)
    except UserError:
        return False
    found = OWN.search(data)
    return found is not None and _digest(data, *found.span(1)) == found[1].decode()


def _digest(data: bytes, start: int, end: int) -> str:
    rest = hashlib.sha256(data[:start])
    rest.update(data[end + 4 if data.startswith(PNG) else end :])
    return rest.hexdigest()


def csv_digests(path: Path) -> list[str]:
    """Return the SHA-256 of the .csv that the mark of a table or figure names; empty without a mark."""
    return [found.decode() for found in CSV.findall(ends(path))]


def ends(path: Path) -> bytes:
    """Return the beginning and the end of a file, one of which contains its mark; empty if not a regular file."""
    text = leading(path)
    if not text:
        return b""
    try:
        with open(path, "rb") as file:
            file.seek(max(len(text), path.stat().st_size - TAIL))
            return text + file.read(TAIL)
    except OSError:
        return b""


DATASET = FolderKind(
    "data set",
    "preparing this data set",
    "dataset.json",
    "udpm-dataset",
    older=("images.npy", "labels.npy", "source.jsonl"),
)
CACHE = FolderKind("level cache", "caching this data set", "cache.json", "udpm-cache", older=("level_*.npy",))
IMAGES = FolderKind("set of exported images", "exporting into this folder", "export.json", "udpm-images", exact=True)
BUNDLE = FolderKind("exported run", "exporting into this folder", "bundle.json", "udpm-bundle", exact=True)
NETWORKS = FolderKind(
    "set of exported networks", "exporting into this folder", "networks.json", "udpm-networks", exact=True
)
STUDY = FolderKind("study", "writing this study", "Snakefile", "udpm-study", fresh=True)


@dataclass(frozen=True)
class FileKind:
    """A kind of file, such as "score". `made` reads a bounded number of bytes to see if udpm wrote it."""

    what: str
    made: Callable[[Path], bool]


@dataclass(frozen=True)
class KeptFolder:
    """A kind of folder, such as "training run", to which a command adds files without changing others.

    `foreign` returns names in it that show that it is something else; none for an empty folder.
    """

    what: str
    foreign: Callable[[Path], list[str]]


LARGEST_LIST = 1 << 20
"""Maximal bytes to read of a list of tensors or arrays in a file."""


def _json(what: str, name: str, *, key: str | None = None, without: str | None = None) -> FileKind:
    """A JSON file whose first key states its format, with or without another key at the top level."""
    begins = rb'\s*\{\s*"format":\s*"' + name.encode() + b"/"

    def made(path: Path) -> bool:
        text = leading(path)
        has = [f'\n  "{other}": '.encode() in text for other in (key, without) if other]
        return re.match(begins, text) is not None and has in ([], [key is not None])

    return FileKind(what, made)


def _arrays(what: str, name: str) -> FileKind:
    """An .npz whose array `record` is JSON that states its format."""
    # NumPy keeps text as UTF-32.
    wanted = f'"format": "{name}/'.encode("utf-32-le")
    return FileKind(what, lambda path: wanted in _member(path, "record.npy"))


def _member(path: Path, name: str) -> bytes:
    if leading(path, 2) != b"PK":
        return b""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            return file.read(LARGEST_LIST)
    except (OSError, KeyError, ValueError, NotImplementedError, RuntimeError, EOFError, zipfile.BadZipFile):
        return b""


def _members(path: Path) -> tuple[set[str], bytes]:
    """Return the names in a zip, and its comment."""
    if leading(path, 2) != b"PK":
        return set(), b""
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist()), archive.comment
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return set(), b""


SAMPLES_COMMENT = b"udpm-samples"
"""Zip comment of a sample set's .npz."""


def _is_sample_set(path: Path) -> bool:
    names, comment = _members(path)
    if comment.startswith(SAMPLES_COMMENT):
        return True
    # Earlier versions wrote no comment.
    record = path.with_suffix(".json")
    text = leading(record) if {"images.npy", "labels.npy"} <= names and SAMPLE_RECORD.made(record) else b""
    return bool(text) and f'"sha256": "{sha256(path)}"'.encode() in text


IMAGE_ZIP_COMMENT = b"udpm-image-zip "


def image_zip_comment(path: Path) -> bytes:
    """Return the comment of an exported .zip: a mark, and the SHA-256 of its members' names, sizes and checksums.

    Raises:
        zipfile.BadZipFile: not an archive.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for name, (_, packed, size, _, crc) in members(file):
            digest.update(b"%s %d %d %d\n" % (name, packed, size, crc))
    return IMAGE_ZIP_COMMENT + digest.hexdigest().encode()


def _is_image_zip(path: Path) -> bool:
    """Recognize an exported .zip to which nothing was added, and of which nothing was changed or removed."""
    text = ends(path)[-len(IMAGE_ZIP_COMMENT) - 64 :]
    try:
        return text.startswith(IMAGE_ZIP_COMMENT) and text == image_zip_comment(path)
    except (OSError, zipfile.BadZipFile):
        return False


def _is_chain(path: Path) -> bool:
    names = _members(path)[0]
    states = names - {"labels.npy", "record.npy"}
    return bool(states) and len(names - states) == 2 and all(re.fullmatch(r"[xf]_\d+\.npy", name) for name in states)


def _is_imported(path: Path) -> bool:
    """Recognize weights of `udpm import`: those of a run name their data set."""
    description = weights_description(path)
    return bool(description) and "dataset" not in description


def _is_imported_run(path: Path) -> bool:
    """Recognize imported weights of a run: trained ones contain its configuration."""
    description = weights_description(path)
    return bool(description.get("origin")) and "run" not in description


def weights_description(path: Path) -> dict[str, Any]:
    """Return the description in a weight file; empty for any other file, a damaged or a missing one."""
    try:
        description = read_header(path).description
    except UserError:
        return {}
    return description if str(description.get("format")).startswith("udpm-weights/") else {}


def _is_run_weights(path: Path) -> bool:
    return rb"\"format\": \"udpm-weights/" in leading(path, LARGEST_LIST)


def unedited(begins: bytes, older: Callable[[Path], bool]) -> Callable[[Path], bool]:
    """Return a function that recognizes files with this beginning and a digest of themselves, if they are unedited.

    `older` recognizes the files of earlier versions, which have no digest.
    """

    def made(path: Path) -> bool:
        if OWN.search(ends(path)) is not None:
            return re.match(begins, leading(path)) is not None and is_unedited(path)
        return older(path)

    return made


def _marked(begins: bytes) -> Callable[[Path], bool]:
    """Recognize a table or figure, which names its .csv."""
    return unedited(begins, lambda path: re.match(begins, leading(path)) is not None and csv_digests(path) != [])


def _is_older_table(path: Path) -> bool:
    """Recognize Markdown that begins with the table, its title or its notes, and ends with the mark."""
    return leading(path).startswith((b"|", b"**", b"\n", b"- ")) and bool(
        re.search(rb"\n<!-- udpm; csv SHA-256 [0-9a-f]{64} -->\n$", ends(path))
    )


def _last_section(path: Path) -> bytes:
    """Return the last section of Markdown, with its heading."""
    return ends(path).rpartition(b"\n## ")[2]


CARD_BEGINS = rb"---\n(# udpm; [^\n]*\n)?library_name: udpm\n"


def _begins_as_card(path: Path) -> bool:
    """Recognize a model card, edited or not."""
    return re.match(CARD_BEGINS, leading(path)) is not None


def _is_older_card(path: Path) -> bool:
    ends_as_card = re.fullmatch(rb"Provenance\n\nCommit [^\n]*\n", _last_section(path)) is not None
    return ends_as_card and leading(path).startswith(b"---\nlibrary_name: udpm\n")


def _is_older_summary(path: Path) -> bool:
    return leading(path).startswith(f"# {PAGE_TITLE}\n".encode()) and bool(
        re.fullmatch(rb"Where to look\n\n(- [^\n]*\n)*", _last_section(path))
    )


def _is_csv(others: tuple[str, ...]) -> Callable[[Path], bool]:
    """Return a function that recognizes a .csv, which has no mark: a file written with it must name its SHA-256."""

    def made(path: Path) -> bool:
        known = {digest for suffix in others for digest in csv_digests(path.with_suffix(suffix))}
        return bool(known) and sha256(path) in known

    return made


OF_EXTRACTOR = re.compile(r"/code/__torch__/udpm/(metrics|scoring)/")
"""Code of the classifier, now and in earlier versions; exported networks are TorchScript of other modules."""
SAMPLE_RECORD = _json("sample set's record", "udpm-samples", without="shards")
JOINED = _json("record of a joined sample set", "udpm-samples", key="shards")
SAMPLES = FileKind("sample set", _is_sample_set)
IMAGE_ZIP = FileKind("zip of exported images", _is_image_zip)
CHAIN = FileKind("sampling chain", _is_chain)
LATENTS = _arrays("latent-space experiment", "udpm-latents")
REFERENCE = _arrays("reference", "udpm-reference")
SCORE = _json("score", "udpm-score")
DIAGNOSIS = _json("diagnosis", "udpm-diagnosis")
SELECTION = _json("selection", "udpm-selection")
BENCH = _json("record of a benchmark", "udpm-bench")
EXTRACTOR_RECORD = _json("extractor's record", "udpm-extractor")
EXTRACTOR = FileKind("extractor", lambda path: any(map(OF_EXTRACTOR.search, _members(path)[0])))
AVERAGE = FileKind("reconstructed average", lambda path: "average" in weights_description(path))
IMPORTED = FileKind("imported weight file", _is_imported)
IMPORTED_RUN = FileKind("imported weight file", _is_imported_run)
USAGE = FileKind("file of usage", lambda path: leading(path, 9) == b'{"verb": ')
CARD = FileKind("model card", unedited(CARD_BEGINS, _is_older_card))
EXPERIMENT = FileKind(
    "best point",
    unedited(
        rb"# yaml-language-server: [^\n]*\n# udpm; [^\n]*\n",
        lambda path: b"Copied to config/experiments/NAME.yaml it runs" in leading(path, 1 << 12),
    ),
)
SHEET_TITLE = "udpm contact sheet"
SHEET = FileKind(
    "contact sheet",
    unedited(rb"(?s:.){,4096}" + SHEET_TITLE.encode(), lambda path: SHEET_TITLE.encode() in leading(path, 1 << 12)),
)
GRID_TITLE = "udpm samples"
GRID = FileKind("grid of samples", unedited(PNG + rb"(?s:.){,4096}" + GRID_TITLE.encode(), lambda path: False))
PAGE_TITLE = "What ran, and what came of it"
OLDER_PAGE = f'<!doctype html><meta charset="utf-8"><title>{PAGE_TITLE}</title>'.encode()
PAGE = {
    "summary.md": FileKind("summary", unedited(f"# {PAGE_TITLE}\n".encode(), _is_older_summary)),
    "overview.html": FileKind(
        "summary",
        unedited(
            f"<!doctype html>[^\n]*<title>{PAGE_TITLE}</title>".encode(),
            lambda path: leading(path).startswith(OLDER_PAGE),
        ),
    ),
}
FIGURE = {
    ".svg": FileKind("figure", _marked(rb"<\?xml")),
    ".pdf": FileKind("figure", _marked(rb"%PDF-")),
    ".png": FileKind("figure", _marked(rb"\x89PNG")),
    ".csv": FileKind("figure's data", _is_csv((".svg", ".png"))),
}
TABLE = {
    ".csv": FileKind("table", _is_csv((".md", ".tex", ".html"))),
    ".md": FileKind("table", unedited(rb"\||\*\*|\n|- ", _is_older_table)),
    ".tex": FileKind("table", _marked(rb"% udpm; ")),
    ".html": FileKind("table", _marked(rb"<!doctype html>")),
}


def _not_of_a_run(folder: Path) -> list[str]:
    """Return names that no run's folder contains; none once it has a run's configuration or record."""
    if _is_run_record(folder / "complete.json") or _is_run_config(folder / "config.json"):
        return []
    own = {"owner.json", "attempts.jsonl", "rendezvous", "checkpoints"}
    known = {"README.md": _begins_as_card, "weights.safetensors": _is_run_weights}
    names = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return [name for name in names if name not in own and not (name in known and known[name](folder / name))]


_is_run_record = _json("run", "udpm-run").made


def _is_run_config(path: Path) -> bool:
    text = leading(path)
    return all(f'"{key}":'.encode() in text for key in ("experiment", "seed", "dataset_name"))


RUN = KeptFolder("training run", _not_of_a_run)
STUDY_RECORD = "study.json"
"""Record of `udpm run` in its study."""


def _not_of_a_study(folder: Path) -> list[str]:
    own = _json("study", "udpm-study").made(folder / STUDY_RECORD)
    return [] if own else [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")]


RUN_STUDY = KeptFolder("study of udpm run", _not_of_a_study)
FEATURE_FILE = re.compile(r"[0-9a-f]{64}\.[a-z]+(\.[a-z0-9]+)?|\..*")
FEATURES = KeptFolder(
    "folder of kept features",
    lambda folder: [path.name for path in sorted(folder.iterdir()) if not FEATURE_FILE.fullmatch(path.name)],
)
