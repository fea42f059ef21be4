"""Writes a report: one HTML page about a run, or about several compared."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from latentwire.config import ConfigError
from latentwire.diagnostics.run_files import FILES
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
    fresh = path.with_name(path.name + ".tmp")
    try:
        fresh.write_text(page(runs), encoding="utf-8")
        os.replace(fresh, path)
    except OSError as error:
        raise ConfigError([f"{path} cannot be written: {error.strerror}"]) from None
    return path
