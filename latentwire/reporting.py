"""``latentwire report RUN [RUN ...]``: one HTML page about a run, or about several compared."""

import sys
from collections.abc import Sequence
from pathlib import Path

from latentwire.arguments import Parser
from latentwire.config import ConfigError
from latentwire.report.writing import write_report


def main(arguments: Sequence[str]) -> int:
    """Writes a report and says where it is; 2 for bad input."""
    parser = Parser(prog="latentwire report", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, e.g. runs/smoke")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write it")
    try:
        options = parser.parse_args(list(arguments))
        path = write_report(options.runs, options.out)
    except ConfigError as error:
        print("\n".join(["latentwire report:", *error.problems]), file=sys.stderr)
        return 2
    print(path)
    return 0
