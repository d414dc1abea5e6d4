"""What of a watch outlives its process: a file of changes, `[table, key, value]` on a line, `[table, key]` for what is gone.

Written as they happen, so that a killed process loses none; not synced, so that nothing waits: a loss of power may cost
the last seconds. Nobody but the process reads it. Bounded, as the tables are: what was replaced is left out now and then.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable, TypeVar

from .state import Bounded

FILE_MAX = 4 << 20  #: bytes of the file before what was replaced is left out of it

V = TypeVar("V")


class Kept:
    """The tables of one watch, on the disk.

    Args:
        path: the file; its folder is made. One process at a time: it stands beside the spool, which is locked.
        clean: a value without its secrets; whatever is written has passed it.
    """

    def __init__(self, path: Path, clean: Callable[[Any], Any]) -> None:
        self._path, self._clean = path, clean
        self.unsaved = 0  #: changes that could not be written: they are in force, and a process that is started anew will not know them
        self._tables: dict[str, Bounded[str, Any]] = {}
        self._found: dict[str, dict[str, Any]] = {}  # what the file had, of tables that nobody has asked for yet
        self._file, self._most = -1, FILE_MAX
        self._load()

    def hold(self, name: str, table: Bounded[str, V], read: Callable[[Any], V]) -> None:
        """Fills the table with what the file has under the name, and keeps it from now on.

        `read` makes a value of what JSON made of it, and raises TypeError or ValueError for what cannot be one.
        """
        for key, value in self._found.pop(name, {}).items():
            try:
                table.put(key, read(value))
            except (TypeError, ValueError):  # of another version, or torn
                self.unsaved += 1
        self._tables[name] = table
        table.told = lambda key, *value: self._tell([name, key, *value])

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _load(self) -> None:
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError:
            lines = []
        for line in lines:
            try:
                name, key, *value = json.loads(line)
                table = self._found.setdefault(str(name), {})
                table.pop(str(key), None)  # what was changed last stands last
                if value:
                    table[str(key)] = value[0]
            except (ValueError, TypeError, RecursionError):  # torn by a loss of power
                continue
        self._write_anew()

    def _tell(self, change: list[Any]) -> None:
        try:
            os.write(self._file, self._line(change))
            if os.fstat(self._file).st_size > self._most:
                self._write_anew()
        except (OSError, TypeError, ValueError):
            self.unsaved += 1

    def _line(self, change: list[Any]) -> bytes:
        return json.dumps(self._clean(change), separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

    def _write_anew(self) -> None:
        """The file with nothing but what is in force, under its name when it is whole."""
        try:
            self._path.parent.mkdir(0o700, parents=True, exist_ok=True)
            fresh = self._path.with_name(f".{self._path.name}.new")
            fresh.unlink(missing_ok=True)
            fresh.touch(0o600)
            with fresh.open("wb") as file:
                for name, table in (self._found | self._tables).items():
                    for key, value in table.items():
                        file.write(self._line([name, key, value]))
            fresh.replace(self._path)
            self.close()
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._most = max(FILE_MAX, 4 * os.fstat(self._file).st_size)
        except (OSError, TypeError, ValueError):
            self.unsaved += 1


def as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__}; expected text")
    return value


def as_nothing(value: Any) -> None:
    """Of tables that are sets."""


def as_names(value: Any) -> dict[str, None]:
    """Of tables of sets."""
    return dict.fromkeys(map(as_text, value))


def as_members(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__}; expected an object")
    return value
