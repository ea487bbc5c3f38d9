"""What can be wrong with a data folder, said in one sentence each: file, column, row count, first bad rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pinrec_core.errors import InvalidData

_SHOWN_ROWS = 5


@dataclass(frozen=True)
class Problem:
    """One finding: an error, unless `repair` says what was done about the rows or `notice` as what they are kept."""

    file: str
    column: str
    what: str
    rows: int = 0
    """Rows concerned; 0 where it is the file or column as a whole."""
    first_rows: tuple[str, ...] = ()
    repair: str = ""
    notice: str = ""

    @property
    def kind(self) -> str:
        """error, repair or notice."""
        return "repair" if self.repair else "notice" if self.notice else "error"

    @property
    def is_error(self) -> bool:
        """Whether the folder cannot be used as it is."""
        return self.kind == "error"

    def __str__(self) -> str:
        place = f"{self.file}, column {self.column}" if self.column else self.file
        rows = f" ({self.rows:,} {'row' if self.rows == 1 else 'rows'}" if self.rows else ""
        if rows:
            rows += f"; {'first: ' if self.rows > len(self.first_rows) else ''}{', '.join(self.first_rows)})"
        outcome = {"error": "", "repair": f"; repaired: {self.repair}", "notice": f"; kept: {self.notice}"}[self.kind]
        return f"{place}: {self.what}{rows}{outcome}"


class Findings:
    """Collects problems while a folder is read."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    @property
    def has_error(self) -> bool:
        """Whether any finding so far is an error."""
        return any(problem.is_error for problem in self.problems)

    def file(self, file: str, what: str, column: str = "", repair: str = "") -> None:
        """A file or a column is wrong as a whole."""
        self.problems.append(Problem(file, column, what, repair=repair))

    def rows(
        self,
        place: tuple[str, str],
        what: str,
        bad: NDArray[np.bool_] | NDArray[np.int64],
        show: Callable[[int], str],
        repair: str = "",
        notice: str = "",
    ) -> None:
        """Rows of `place` = (file, column) are wrong: a bool mask or row numbers; nothing happens if there are none.

        `show` gives the value of a row for the message.
        """
        at = np.flatnonzero(bad) if bad.dtype == np.bool_ else bad
        if len(at):
            first = tuple(f"row {row:,}: {show(int(row))}" for row in at[:_SHOWN_ROWS])
            self.problems.append(Problem(*place, what, len(at), first, repair, notice))


def raise_errors(folder: str, problems: Iterable[Problem]) -> None:
    """Raise InvalidData listing every error among `problems`, if there is one."""
    errors = [str(problem) for problem in problems if problem.is_error]
    if errors:
        raise InvalidData(f"{folder} does not keep the event-log contract:\n  " + "\n  ".join(errors))
