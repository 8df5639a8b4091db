"""One JSON object a line on standard error. Never a picture's bytes, a body or a token."""

import json
import logging
import sys
from datetime import UTC, datetime

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


def to_standard_error() -> None:
    """For a process that serves; a test or a program that embeds the application has its own handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    for name in ("graft.serving", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)
