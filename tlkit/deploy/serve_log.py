"""One JSON object a line on stderr. Neither pictures nor their names, nor who sent them, are in it."""

import json
import logging
from datetime import UTC, datetime

LOG = logging.getLogger("tlkit.serve")
_KEYS = ("method", "path", "status", "ms", "bytes", "pictures", "url")


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage().strip(),
        }
        values |= {key: getattr(record, key) for key in _KEYS if hasattr(record, key)}
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False)


def log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.captureWarnings(True)
    for name, level in (("tlkit.serve", logging.INFO), ("uvicorn", logging.WARNING), ("py.warnings", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
