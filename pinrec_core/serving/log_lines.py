"""Log lines of a process, as text for people or as JSON for machines: one event a line, on stderr."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timezone

from pinrec_core.errors import InvalidConfig

LOG_FORMATS = ("text", "json")

VARIABLE = "PINREC_LOG_FORMAT"
"""Environment variable that says which one, for processes without an option of that name."""

Facts = Callable[[], Mapping[str, str]]
"""What is known of the call that is being served: name -> value, for example its request_id."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, process, logger, message, facts; an exception with its traceback."""

    def __init__(self, process: str, facts: Facts = dict) -> None:
        super().__init__()
        self._process = process
        self._facts = facts

    def format(self, record: logging.LogRecord) -> str:
        """The line; a newline inside a value stays escaped."""
        at = datetime.fromtimestamp(record.created, timezone.utc)
        line = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **self._facts(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextLines(logging.Formatter):
    """Time, level, process or logger, message, and the facts in brackets."""

    def __init__(self, name: str = "%(name)s", facts: Facts = dict) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {name}: %(message)s")
        self._facts = facts

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name in logging
        """The line without its traceback."""
        facts = " ".join(f"{name}={value}" for name, value in self._facts().items())
        return super().formatMessage(record) + (f" [{facts}]" if facts else "")


def start_logging(formatter: logging.Formatter) -> None:
    """Lines of INFO and above to stderr, from now on; does nothing where a handler is set already."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def stage_lines(stage: str, log_format: str) -> logging.Formatter:
    """The formatter of a stage inside Triton. Raises InvalidConfig for a format that does not exist."""
    if log_format not in LOG_FORMATS:
        raise InvalidConfig(f"{VARIABLE} has value {log_format!r}; allowed: {', '.join(LOG_FORMATS)}")
    return JsonLines(stage) if log_format == "json" else TextLines(stage)
