"""Reading what people hand in: tables and JSON with file and line in every error, clips that stay in their folder."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from .report import CorpusError

# Text that was once read as Latin-1 has cp1252's quotes and dashes as control characters (U+0080 … U+009F).
_CONTROLS = {code: bytes([code]).decode("cp1252", "ignore") or " " for code in range(0x80, 0xA0)}


def clean_text(text: str) -> str:
    """`text` with single blanks between words and with the quotes and dashes that a wrong encoding had hidden."""
    return " ".join(text.translate(_CONTROLS).split())


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without byte order mark, or else in cp1252 (what spreadsheets export).

    Raises:
        CorpusError: the file is absent or in neither encoding.
    """
    if not path.is_file():
        raise CorpusError(path, "there is no such file; check the folder and the corpus's own layout", "missing file")
    content = path.read_bytes()
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError as error:
            problem = f"byte {error.start} is neither UTF-8 nor cp1252; save the file as UTF-8"
    raise CorpusError(path, problem, "encoding")


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str] | CorpusError]]:
    """Yields `(place, cells)` of each row of a CSV file; `place` names file and line.

    A row with too few or too many cells comes as a [`CorpusError`] in place of its cells, to be raised by a caller who
    may skip it.

    Raises:
        CorpusError: a column of `columns` is missing, or quotes are broken so that no later row can be trusted.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        place = f"{path}, line {line}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise CorpusError(place, f"broken quoting ({error}); close the quotes of this row", "quoting") from error
        if cells is None:
            break
        if not header:
            header = [cell.strip() for cell in cells]
            if missing := [column for column in columns if column not in header]:
                problem = f"column {', '.join(missing)} is missing; there are {', '.join(header)}"
                raise CorpusError(place, problem, "columns")
            if doubled := sorted({column for column in header if header.count(column) > 1}):
                raise CorpusError(place, f"column {', '.join(doubled)} stands there twice; keep one", "columns")
        elif cells and len(cells) != len(header):
            problem = f"{len(cells)} cells in a table of {len(header)} columns; put quotes around text with commas"
            yield place, CorpusError(place, problem, "cells")
        elif cells:
            yield place, dict(zip(header, cells, strict=True))
    if not header:
        raise CorpusError(path, f"is empty; its first line must name the columns {', '.join(columns)}", "columns")


def read_json(path: Path):
    """The content of a JSON file.

    Raises:
        CorpusError: with the line, where it is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise CorpusError(f"{path}, line {error.lineno}", f"not JSON ({error.msg})", "JSON") from error


def whole_number(cell: str, column: str, place: str) -> int:
    """The whole number, 0 or more, in a cell."""
    if not (cell.strip().isascii() and cell.strip().isdigit()):
        raise CorpusError(place, f"{column} is {cell!r}; give a whole number", "number")
    return int(cell)


def clip_inside(folder: Path, name: str | Path, place: str) -> str:
    """The absolute path of a clip in `folder`.

    Raises:
        CorpusError: the path or a symbolic link on it leads out of the folder, or there is no such file.
    """
    folder = folder.resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        problem = f"{str(name)!r} leads out of {folder}, to {path}; put the file itself into the folder"
        raise CorpusError(place, problem, "outside the folder")
    if not path.is_file():
        raise CorpusError(place, f"there is no clip {folder / name}", "missing clip")
    return str(path)
