"""The record of an evaluation: a CSV file to which each measured picture is added at once, and which is read back.

Its first line is a comment that holds the settings as JSON, so that figures of different settings never mix; programs
read the rest with `#` as the sign of a comment.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from .layouts import EvaluationError
from .scoring import COLUMNS, Row

# A file's name may be no text at all.
_NAMES = "surrogateescape"


class Record:
    """What has been measured so far.

    Attributes:
        path: of the CSV file.
        rows: by the samples' names.
        is_resumed: whether there was a record to go on with, see `goes_on`.
        written_ns: when its file was written last, in nanoseconds of the system's clock; 0 where there was none.
    """

    def __init__(self, path: Path, facts: Mapping[str, object], overwrite: bool = False):
        """Opens the record, or begins it.

        Args:
            facts: the settings, see `Settings.facts`.
            overwrite: begin anew, whatever is there.
        Raises:
            EvaluationError: the file is of other settings (the sentence says which), or is no record.
        """
        self.path = Path(path)
        self.rows: dict[str, Row] = {}
        self._lines: dict[str, str] = {}
        # As JSON has them, so that tuples and lists are the same.
        self._facts = json.loads(json.dumps(facts))
        self.is_resumed = goes_on(self.path, overwrite)
        self.written_ns = self.path.stat().st_mtime_ns if self.is_resumed else 0
        if self.is_resumed:
            self._read()
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, self._head())

    def add(self, row: Row) -> None:
        """Keeps a picture's figures; they are in the file when this returns.

        Raises:
            OSError: they could not be written, and nothing of them is in the file.
        """
        spelled = _line([_spelled(row[column]) for column in COLUMNS])
        line = spelled.encode("utf-8", _NAMES)
        # One write of whole lines, so that stopping the program leaves no half of one.
        with open(self.path, "ab", buffering=0) as file:
            before = file.tell()
            try:
                # On a disk that fills up a part is written without complaint, and only the next write fails.
                while line:
                    line = line[file.write(line) :]
            except OSError as error:
                file.truncate(before)
                raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.rows[str(row["name"])] = row
        self._lines[str(row["name"])] = spelled

    def forget(self, names: Iterable[str]) -> None:
        """Takes pictures out of the record and its file."""
        forgotten = [name for name in names if self.rows.pop(name, None)]
        for name in forgotten:
            del self._lines[name]
        if forgotten:
            write_whole(self.path, self._head() + "".join(self._lines.values()))

    def _head(self) -> str:
        return f"# {json.dumps(self._facts)}\n{_line(COLUMNS)}"

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            lines = whole.decode("utf-8", _NAMES).split("\n", 1)
            facts = json.loads(lines[0].removeprefix("# "))
            header, *rows = list(csv.reader(io.StringIO(lines[1], newline="")))
            if not lines[0].startswith("# ") or not isinstance(facts, dict) or tuple(header) != COLUMNS:
                raise ValueError("its head is not that of a record")
            read = [_read_row(row) for row in rows]
        except (ValueError, IndexError, csv.Error, RecursionError) as error:
            raise EvaluationError(
                f"{self.path} is no record of an evaluation that could be continued ({error}). Choose another output "
                "folder, or --overwrite to begin anew."
            ) from error
        if facts != self._facts:
            raise EvaluationError(
                f"{self.path} was measured with other settings: {_differences(facts, self._facts)}. Repeat the command "
                "with those, choose another output folder, or --overwrite to begin anew."
            )
        if len(whole) < len(content):
            # Half a line that a power failure left.
            write_whole(self.path, whole.decode("utf-8", _NAMES))
        self.rows = {str(row["name"]): row for row in read}
        self._lines = {str(row["name"]): _line(cells) for row, cells in zip(read, rows)}


def goes_on(path: Path, overwrite: bool) -> bool:
    """Whether an evaluation goes on with the record at a path; otherwise it begins one."""
    return path.exists() and not overwrite


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that appears under its name only when it is complete."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(text.encode("utf-8", _NAMES))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _line(values) -> str:
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _spelled(value: float | str) -> str:
    """Numbers in as many digits as bring them back; nothing for NaN."""
    if isinstance(value, str):
        return value
    return "" if value != value else repr(value)


def _read_row(values: list[str]) -> Row:
    if len(values) != len(COLUMNS):
        raise ValueError(f"a line has {len(values)} instead of {len(COLUMNS)} columns")
    return {column: value if column == "name" else float(value or "nan") for column, value in zip(COLUMNS, values)}


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(f"{name} was {_told(before.get(name))}, is {_told(now.get(name))}" for name in changed)


def _told(value: object) -> str:
    if value is None:
        return "not said"
    if isinstance(value, list):
        return " ".join(_told(part) for part in value)
    # Of a sha256 the beginning tells two files apart.
    text = str(value)
    return text[:12] if len(text) == 64 and not set(text) - set("0123456789abcdef") else text
