"""`serving.json`: the only thing beside the releases that changes. Whoever reads it sees a valid state, always."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pinrec_core.errors import InvalidRelease, ReleasesLocked
from pinrec_core.release.files import lock, read_json, write_json
from pinrec_core.release.layout import open_release

MAX_OPEN = 2
_LOCK = ".activation.lock"


@dataclass(frozen=True)
class ServingState:
    """Which release the gateway admits requests for, and which ones stages hold open (at most two).

    `previous` was active before: what a rollback goes back to.
    """

    active: int
    open: tuple[int, ...]
    previous: int | None = None


def serving_state(root: Path) -> ServingState:
    """Read `serving.json`. Raises InvalidRelease if there is none yet, or it says something else."""
    values = read_json(root / "serving.json", "serving state")
    try:
        previous = values.get("previous")
        state = ServingState(
            active=int(values["active"]),
            open=tuple(int(number) for number in values["open"]),
            previous=None if previous is None else int(previous),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRelease('serving state: serving.json must look like {"active": 2, "open": [1, 2]}') from error
    _check(state)
    return state


def write_serving_state(root: Path, state: ServingState) -> None:
    """Replace `serving.json` atomically."""
    _check(state)
    values = {"active": state.active, "open": list(state.open)}
    write_json(root / "serving.json", values if state.previous is None else {**values, "previous": state.previous})


def activate(root: Path, number: int) -> ServingState:
    """Verify release `number` and make it the active one, asking no gateway; the one that was active stays open.

    Raises InvalidRelease, and changes nothing, if the release is not whole; ReleasesLocked.
    """
    with activation_lock(root):
        open_release(root, number, verify=True)
        first = not (root / "serving.json").exists()
        state = ServingState(number, (number,)) if first else switched(serving_state(root), number)
        write_serving_state(root, state)
        return state


def switched(state: ServingState, number: int) -> ServingState:
    """The state with `number` active and the one that was active still open; the same again closes the other one."""
    if number == state.active:
        return ServingState(number, (number,), state.previous)
    return ServingState(number, (state.active, number), previous=state.active)


@contextmanager
def activation_lock(root: Path) -> Iterator[None]:
    """Held by whoever changes which releases are served or there. Raises ReleasesLocked if another has it."""
    if not root.is_dir():
        raise InvalidRelease(f"no release: folder {root.name!r} is missing")
    try:
        with lock(root / _LOCK, wait=False):
            yield
    except BlockingIOError as error:
        raise ReleasesLocked("another activation, rollback or gc of these releases is running; wait for it") from error


def _check(state: ServingState) -> None:
    if state.active not in state.open or len(state.open) > MAX_OPEN:
        raise InvalidRelease(f"serving state {state} must hold its active release and at most {MAX_OPEN} open ones")
