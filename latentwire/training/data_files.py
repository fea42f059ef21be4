"""The data files of a run are what they were when it began: splits are drawn from what is in them,
so another content would put texts that were trained on among those that were not."""

import hashlib
import json
import logging
from pathlib import Path

from latentwire.config import Config, ConfigError
from latentwire.distributed.groups import Group
from latentwire.files import replace_text
from latentwire.training.preflight import Plan
from latentwire.training.status import FILES
from latentwire.training.unreadable import agreed_first

log = logging.getLogger(__name__)

_CHUNK = 1 << 24


def record_data(plan: Plan) -> None:
    """Writes down what is in the run's data files, once: what they are when it begins."""
    path = plan.run_folder / FILES["data"]
    if not path.exists():
        replace_text(path, json.dumps(_digests(plan.config), indent=2) + "\n")


def check_data(plan: Plan, world: Group, *, trained: Config) -> None:
    """Compares the run's data files with what they were when it began. All must call.

    Args:
        trained: what the run is trained with, where ``plan`` evaluates it on other data.

    Raises:
        ConfigError: on every rank alike, naming the files that have changed.
    """

    def changed() -> list[str]:
        return _problems(plan, trained)

    if found := agreed_first(changed, world, what=plan.run_folder):
        raise ConfigError(found)


def _problems(plan: Plan, trained: Config) -> list[str]:
    try:
        known = json.loads((plan.run_folder / FILES["data"]).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # of before they were written down, or lost with the folder
    now = _digests(trained)
    found = [
        f"{key}: {getattr(trained.data, key.removeprefix('data.'))} has changed since the run "
        "began, and with it what is held out; restore it, or start a new run.tag"
        for key in now
        if isinstance(known, dict) and known.get(key, now[key]) != now[key]
    ]
    if found and plan.config.data.test_path not in (None, trained.data.test_path):
        # Texts of another file are evaluated, and the user is to know what cannot be told.
        log.warning("whether the wire was trained on these texts is not known: %s", found[0])
        return []
    return found


def _digests(config: Config) -> dict[str, str]:
    """The SHA-256 of each local file, by its key."""
    data, found = config.data, {}
    paths = (
        ("data.path", data.path),
        ("data.validation_path", data.validation_path),
        ("data.test_path", data.test_path),
    )
    for key, path in paths:
        if path is not None and Path(path).is_file():
            digest = hashlib.sha256()
            with Path(path).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
            found[key] = digest.hexdigest()
    return found
