"""Files: written whole, and texts read in blocks: a file may be larger than memory."""

import contextlib
import functools
import hashlib
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from workbook import ROOT

DATA = ROOT / "data"
BLOCK = 2**24  # bytes that are read at once
ENDOFTEXT = "<|endoftext|>"
SEPARATORS = {"lines": r"\n", "paragraphs": r"\n\s*\n", ENDOFTEXT: re.escape(ENDOFTEXT)}  # of the texts in a file
BLANKS = {  # within one text; the tokenizer's pattern cannot go through them
    separator: rf"(?<!{blank}){blank}{{100000}}"
    for separator, blank in {"lines": r"[^\S\n]", "paragraphs": r"[^\S\n]", ENDOFTEXT: r"\s"}.items()
}
TOO_MANY_BLANKS = "100,000 blanks in a row, which cannot be encoded; remove them"
BLANK = rb"[\t\x0b-\r\x1c-\x20]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
BLANK_LINE = re.compile(rb"\n(?:%b)*\n" % BLANK)  # in UTF-8; BLANK is what \s is beside a line end
UNFINISHED = re.compile(rb"[\xc0-\xff][\x80-\xbf]{0,2}\Z")  # perhaps: the rest may follow
ALL_BLANK = re.compile(rb"(?:\n|%b)*" % BLANK)
BOM = "\ufeff".encode()


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` write a file that takes the place of `path` when it is whole, as readable as the umask says."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        write(partial)
        partial.chmod(stat.S_IMODE(mode))  # safetensors makes files that nobody else can read
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def csv_frames(path: Path) -> Iterator[pd.DataFrame]:
    yield from pd.read_csv(path, dtype=str, keep_default_na=False, chunksize=10_000)


def jsonl_frames(path: Path) -> Iterator[pd.DataFrame]:
    yield from pd.read_json(path, lines=True, dtype=False, chunksize=10_000)


def parquet_frames(path: Path) -> Iterator[pd.DataFrame]:
    from pyarrow import parquet  # type: ignore[import-untyped]

    file = parquet.ParquetFile(path)
    names = [name for name in file.schema_arrow.names if name == "text"] or file.schema_arrow.names
    yield from (batch.to_pandas() for batch in file.iter_batches(10_000, columns=names))


TABLES: dict[str, Callable[[Path], Iterator[pd.DataFrame]]] = {  # files of rows, whose column "text" is read
    "csv": csv_frames,
    "jsonl": jsonl_frames,
    "parquet": parquet_frames,
}


def find_data(path: str | Path) -> Path:
    """`path` itself, or the file of that name in data/. FileNotFoundError names both places.

    ValueError for a folder, and for a pipe or device: a text is read more than once.
    """
    for candidate in (Path(path), DATA / path):
        if candidate.is_file():
            return candidate
        if candidate.is_dir():
            raise ValueError(f"{path} is a folder; name a file in it")
        if candidate.exists():
            raise ValueError(f"{path} is a pipe or a device, which can be read only once; save the text as a file")
    raise FileNotFoundError(f"no file {path}: looked for it as given and in the workbook's data folder")


class TextFile:
    """A UTF-8 file of texts, also looked up in data/, and what separates them: one of SEPARATORS, or guessed.

    A mark of byte order (BOM) at the start is left out, and CR LF is a line end as LF is. All else is text: a lone CR,
    VT, FF, NEL, U+2028, a BOM further on. Texts of white space alone are left out. With one of TABLES as `separator`
    the column "text" of a table is read. ValueError for a file that is no UTF-8 text (UTF-16, or with a NUL), for an
    unknown separator, and for a table without that column.
    """

    def __init__(self, path: str | Path, separator: str | None = None):
        if separator not in (None, *SEPARATORS, *TABLES):
            known = ", ".join([*SEPARATORS, *TABLES])
            raise ValueError(f"separator is {separator!r}; expected one of {known}, or None to guess")
        self.path, self.given = find_data(path), separator
        self.size = self.path.stat().st_size
        self.total: int | None = None if separator in TABLES else self.size  # of places, in a unit
        self.unit = "rows" if separator in TABLES else "B"

    def chunks(self) -> Iterator[bytes]:
        """The file in blocks that end with a whole character."""
        with self.path.open("rb") as file:
            rest = b""
            while chunk := file.read(BLOCK):
                whole = UNFINISHED.sub(b"", chunk := rest + chunk)
                rest = chunk[len(whole) :]
                yield whole
            yield rest

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the file."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()

    @functools.cached_property
    def separator(self) -> str:
        """What lies between the texts: as given, or `<|endoftext|>` where it occurs, else blank lines, else line ends.

        Blank lines before the first text and after the last do not count.
        """
        if self.given:
            return self.given
        mark, tail = ENDOFTEXT.encode(), b""
        for chunk in self.chunks():  # a mark may lie across two of them
            if mark in (chunk := tail + chunk):
                return ENDOFTEXT
            tail = chunk[-len(mark) :]
        before, begun = b"", False
        for chunk in self.chunks():
            chunk = before + chunk
            start = 0
            if not begun and (blank := ALL_BLANK.match(chunk, len(BOM) if chunk.startswith(BOM) else 0)):
                start = blank.end()
                begun = start < len(chunk)
            found = BLANK_LINE.search(chunk, start)
            if found and ALL_BLANK.fullmatch(chunk, found.end()) is None:
                return "paragraphs"
            before = chunk[found.start() if found else chunk.rfind(b"\n") :]
            before = before if found or len(before) < 300_000 else b""  # no more blanks than that may be encoded
        return "lines"

    def blocks(self, place: int = 0) -> Iterator[tuple[list[str], int]]:
        """The texts from `place` on, a block at a time, and the place at which the next one begins: bytes, or rows."""
        return self.table_blocks(place) if self.given in TABLES else self.text_blocks(place)

    def text_blocks(self, place: int) -> Iterator[tuple[list[str], int]]:
        with self.path.open("rb") as file:
            file.seek(place)
            data, ended, size = b"", False, BLOCK
            while not ended:
                chunk = file.read(size)
                data, ended = data + chunk, len(chunk) < size
                cut = len(data) if ended else self.last_cut(data)
                size = BLOCK if cut else 2 * size  # one text is longer than the block
                if cut:
                    yield self.split(data[:cut], place), place + cut
                    data, place = data[cut:], place + cut

    def last_cut(self, data: bytes) -> int:
        """Where the last separator in the block ends; 0 where there is none."""
        if self.separator == "paragraphs":
            last = deque(BLANK_LINE.finditer(data), maxlen=1)
            return last[0].end() if last else 0
        mark = {"lines": "\n"}.get(self.separator, self.separator).encode()
        return data.rfind(mark) + len(mark) if mark in data else 0

    def split(self, data: bytes, place: int) -> list[str]:
        """The texts in the bytes that begin at `place`."""
        text = data.decode("utf-8" if place else "utf-8-sig", "surrogateescape")
        if re.search("[\0\udc80-\udcff]", text):  # the surrogates are bytes that could not be decoded
            raise ValueError(f"{self.path} is no UTF-8 text; save it as UTF-8")
        text = text.replace("\r\n", "\n")
        if blanks := re.search(BLANKS[self.separator], text):
            line = 1 + text.count("\n", 0, blanks.start())
            with self.path.open("rb") as file:
                while place > 0:
                    line += file.read(min(place, BLOCK)).count(b"\n")
                    place -= BLOCK
            raise ValueError(f"{self.path}, line {line}: {TOO_MANY_BLANKS}")
        parts = re.split(SEPARATORS[self.separator], text)
        parts = parts if self.separator == "lines" else [part.strip() for part in parts]
        return [part for part in parts if part.strip()]

    def table_blocks(self, place: int) -> Iterator[tuple[list[str], int]]:
        rows = 0
        for frame in self.frames():
            begin, rows = rows, rows + len(frame)
            if rows <= place:
                continue
            if "text" not in frame:
                names = ", ".join(map(str, frame))
                raise ValueError(f"{self.path} has the columns {names}; expected one called text")
            cells = [(row, str(cell)) for row, cell in enumerate(frame["text"], begin + 1) if not pd.isna(cell)]
            if long := [row for row, cell in cells if re.search(BLANKS[ENDOFTEXT], cell)]:
                raise ValueError(f"{self.path}, text {long[0]}: {TOO_MANY_BLANKS}")
            if odd := [row for row, cell in cells if re.search("[\ud800-\udfff]", cell)]:
                raise ValueError(f"{self.path}, text {odd[0]}: half a character (a surrogate); remove it")
            yield [cell for row, cell in cells if row > place and cell.strip()], rows

    def frames(self) -> Iterator[pd.DataFrame]:
        try:
            yield from TABLES[self.separator](self.path)
        except (ValueError, ImportError) as error:  # what pandas and pyarrow raise is one of these
            raise ValueError(f"{self.path} cannot be read as {self.given}: {str(error).splitlines()[0]}") from error


class HubTexts:
    """A split of TinyStories (Eldan & Li 2023), which `datasets` fetches once and maps into memory."""

    given, unit = "hub", "rows"

    def __init__(self, split: str):
        with hub_errors():
            import datasets

            self.rows: Any = datasets.load_dataset("roneneldan/TinyStories", split=split)
        self.total, self.size = len(self.rows), self.rows.data.nbytes
        self.digest: str = self.rows._fingerprint

    def blocks(self, place: int = 0) -> Iterator[tuple[list[str], int]]:
        """The texts from row `place` on, a block at a time, and the row after them."""
        for begin in range(place, self.total, 10_000):
            end = min(begin + 10_000, self.total)
            yield [text for text in map(str.strip, self.rows[begin:end]["text"]) if text], end


def stream_hub(split: str) -> Iterator[str]:
    """The stories of a split one after the other, without fetching all."""
    with hub_errors():
        import datasets

        for row in datasets.load_dataset("roneneldan/TinyStories", split=split, streaming=True):
            if text := row["text"].strip():
                yield text


@contextlib.contextmanager
def hub_errors() -> Iterator[None]:
    """ConnectionError, with what to do, for what the libraries raise without a network: each version another one."""
    try:
        yield
    except Exception as error:
        hint = "use the built-in stories (source 'builtin'), or give the path of a local text file"
        raise ConnectionError(f"TinyStories cannot be fetched from the hub ({type(error).__name__}); {hint}") from error
