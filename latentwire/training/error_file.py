"""The launcher's error file: why this rank ended, which torchrun shows of the rank that failed
first."""

import json
import logging
import os
import time
import traceback
from pathlib import Path

log = logging.getLogger(__name__)


def leave_error_file(error: BaseException, *, is_clear: bool) -> None:
    """Writes the file where the launcher has asked for one.

    Args:
        is_clear: the error's own words say all; otherwise its traceback goes into the file.
    """
    name = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not name:
        return
    more = {"timestamp": str(int(time.time()))}
    if not is_clear:
        more["py_callstack"] = "".join(traceback.format_exception(error))
    words = str(error) if is_clear else f"{type(error).__name__}: {error}"
    try:
        Path(name).write_text(json.dumps({"message": {"message": words, "extraInfo": more}}))
    except OSError as failure:
        log.error("the launcher's error file could not be written: %s", failure)
