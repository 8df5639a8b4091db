"""One JSON object a line on standard error. Never a picture's bytes, a body or a token."""

import contextlib
import json
import logging
import threading
import time
from datetime import UTC, datetime
from typing import TextIO

FLUSH_SECONDS = 0.2

log = logging.getLogger("graft.serving")


class JsonLines(logging.Formatter):
    """`extra={"fields": {...}}` become keys beside time, level and message."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Gathered(logging.StreamHandler[TextIO]):
    """Writes lines together, five times a second and at warnings: at each write, the event loop lets other threads go
    first, and comes back late."""

    def __init__(self) -> None:
        super().__init__(open(2, "w", buffering=1 << 16, encoding="utf-8", closefd=False))  # noqa: SIM115
        threading.Thread(target=self._flush_regularly, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(self.format(record) + self.terminator)
            if record.levelno >= logging.WARNING:
                self.flush()
        except Exception:  # As in every handler of the library: a full disk ends a log, and not the request.
            self.handleError(record)

    def _flush_regularly(self) -> None:
        while True:
            time.sleep(FLUSH_SECONDS)
            with contextlib.suppress(OSError):  # The disk may have room again at the next.
                self.flush()


def to_standard_error() -> None:
    """For a process that serves; a test or a program that embeds the application has its own handlers."""
    handler = _Gathered()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    for name in ("graft.serving", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)
