"""Writes a report: one HTML page about a run, or about several compared."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from latentwire.config import ConfigError
from latentwire.diagnostics.run_files import FILES
from latentwire.files import publish
from latentwire.report.page import page
from latentwire.report.run_data import read_run


def write_report(
    folders: Sequence[Path], out: Path | None = None, *, state: str | None = None
) -> Path:
    """Writes the report of one run, or of several; returns its path.

    Args:
        out: the file; None is ``report.html`` in the first run's folder, for several runs
            ``report-compared.html``.
        state: of the runs, where their status does not tell it yet.

    Raises:
        ConfigError: a folder holds no run, or the file cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    if state is not None:
        runs = [replace(run, status=run.status | {"state": state}) for run in runs]
    name = FILES["report"] if len(folders) == 1 else "report-compared.html"
    path = folders[0] / name if out is None else out
    # Foreign files may hold halves of surrogate pairs, which are no text.
    written = page(runs).encode("utf-8", "replace")
    try:
        if path.exists() and not path.is_file():
            # A device or a pipe: a file put in its place would destroy it.
            path.write_bytes(written)
        else:
            publish(Path(os.path.realpath(path)), written, durably=False)  # a link stays one
    except OSError as error:
        raise ConfigError([f"{path} cannot be written: {error.strerror}"]) from None
    return path
