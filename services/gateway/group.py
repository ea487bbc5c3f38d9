"""What the processes of one gateway know of each other: a row of numbers each, in memory that they share.

The kernel hands each connection to one of them, so each sees only its part of what the ensemble works on. A row has one
writer. What others read in it is whole, and was true a moment ago.
"""

from __future__ import annotations

import mmap
import time
from collections import Counter
from pathlib import Path
from statistics import median

PAIRS = 8
"""Releases that a process can have requests of at once; two may be open."""

_BEAT, _LISTENING, _ADMITTED, _LONE_NS, _OVERLOAD, _UNTIL_NS, _TOTAL, _PAIRS = range(8)
"""Columns of a row: when its event loop last turned (0 = no such process), whether it takes connections, the release
that it admits requests for, what a lone request takes, the share of its requests that find too many (in billionths, 0
= no overload) and until when that counts, its requests in the ensemble, and these by release."""

_COLUMNS = _PAIRS + 2 * PAIRS
_ROW_BYTES = 8 * _COLUMNS


class Table:
    """int64 [size, columns], in a file that all of them map or in the memory of one process."""

    def __init__(self, memory: memoryview) -> None:
        self.size = memory.nbytes // _ROW_BYTES
        self._cells = memory.cast("q", [self.size, _COLUMNS])

    @classmethod
    def in_memory(cls, size: int = 1) -> Table:
        """That of a process which has the port alone."""
        return cls(memoryview(bytearray(size * _ROW_BYTES)))

    @classmethod
    def make(cls, path: Path, size: int) -> Table:
        """A new file for `size` processes."""
        path.write_bytes(bytes(size * _ROW_BYTES))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Table:
        """The file that another process has made."""
        with path.open("r+b") as file:
            return cls(memoryview(mmap.mmap(file.fileno(), 0)))

    def get(self, row: int, column: int) -> int:
        """One number."""
        return int(self._cells[row, column])

    def put(self, row: int, column: int, value: int) -> None:
        """One number, by the one who may write this row."""
        self._cells[row, column] = value

    def column(self, column: int) -> list[int]:
        """Of every process."""
        return [self.get(row, column) for row in range(self.size)]

    def clear(self, row: int) -> None:
        """The process of this row is gone, and its requests with it."""
        for column in range(_COLUMNS):
            self.put(row, column, 0)

    def beat(self, row: int) -> int:
        """Changes while the process's event loop turns; 0 = there is none."""
        return self.get(row, _BEAT)

    def is_listening(self, row: int) -> bool:
        """Whether the process takes connections."""
        return bool(self.get(row, _LISTENING))


class Group:
    """The processes behind one port, as the one of row `place` sees them and is seen. For one event loop."""

    def __init__(self, table: Table, place: int = 0) -> None:
        self._table = table
        self.place = place
        self._others = [row for row in range(table.size) if row != place]
        self._pair_of: dict[int, int] = {}
        table.clear(place)
        self.beat()

    @classmethod
    def alone(cls) -> Group:
        """One process that has the port to itself."""
        return cls(Table.in_memory())

    @property
    def size(self) -> int:
        """Processes that there should be."""
        return self._table.size

    def share(self, whole: int) -> int:
        """What this process may have of something that all may have `whole` of: the parts add up, and each has one."""
        return max(1, whole // self.size + (self.place < whole % self.size))

    def beat(self) -> None:
        """This process's event loop turns."""
        self._put(_BEAT, time.monotonic_ns())

    def listen(self) -> None:
        """This process takes connections."""
        self._put(_LISTENING, 1)

    @property
    def others_listen(self) -> bool:
        """Whether another process takes connections."""
        return any(map(self._table.is_listening, self._others))

    def admit(self, release: int) -> None:
        """This process admits requests for a release from now on, and for no other."""
        self._put(_ADMITTED, release)

    @property
    def admitted(self) -> int:
        """The release that every process admits requests for; 0 while they differ, or one admits none."""
        beats = self._table.column(_BEAT)
        (first, *others) = {one for one, beat in zip(self._table.column(_ADMITTED), beats, strict=True) if beat}
        return 0 if others else first

    def count(self, release: int, change: int) -> None:
        """So many requests of a release came into the ensemble, or left it."""
        self._put(_TOTAL, self._table.get(self.place, _TOTAL) + change)
        column = self._column_of(release)
        self._put(column, release)
        self._put(column + 1, self._table.get(self.place, column + 1) + change)
        if not self._table.get(self.place, column + 1):
            del self._pair_of[release]

    @property
    def in_flight(self) -> int:
        """Requests of all processes that are in the ensemble."""
        return sum(self._table.column(_TOTAL))

    def in_flight_by_release(self) -> dict[int, int]:
        """The same by release, of each that has any."""
        found: Counter[int] = Counter()
        for column in range(_PAIRS, _COLUMNS, 2):
            for release, count in zip(self._table.column(column), self._table.column(column + 1), strict=True):
                found[release] += count
        return dict(+found)

    def measured(self, lone_s: float) -> None:
        """What a lone request takes, as this process has measured it."""
        self._put(_LONE_NS, int(lone_s * 1e9))

    @property
    def lone_s(self) -> float:
        """What a lone request takes, as those have measured it who have; 0 = nobody has."""
        known = [one for one in self._table.column(_LONE_NS) if one]
        return median(known) / 1e9 if known else 0.0

    def overloaded(self, share: float, until_s: float) -> None:
        """So many of this process's requests find too many, 0 = no overload; valid until then, on a clock of all."""
        self._put(_UNTIL_NS, int(until_s * 1e9))
        self._put(_OVERLOAD, int(share * 1e9))

    def worst_of_others(self, now_s: float) -> float:
        """The greatest such share of another process; 0 = none of them is in overload."""
        if not self._others:
            return 0.0
        shares, until_ns = self._table.column(_OVERLOAD), self._table.column(_UNTIL_NS)
        return max((shares[row] for row in self._others if until_ns[row] > now_s * 1e9), default=0) / 1e9

    def _put(self, column: int, value: int) -> None:
        self._table.put(self.place, column, value)

    def _column_of(self, release: int) -> int:
        pair = self._pair_of.get(release)
        if pair is None:
            free = {*range(PAIRS)} - {*self._pair_of.values()}
            pair = self._pair_of[release] = min(free, default=PAIRS - 1)
        return _PAIRS + 2 * pair
