"""The encoder's tokens of all of a run's texts, kept in files before its first step."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from latentwire.data.example import Example
from latentwire.distributed.assembly import Job
from latentwire.training.cache_error import raise_agreed

log = logging.getLogger(__name__)

FOLDER = "tokens"
"""In ``checkpoint.root``."""


def build(job: Job, examples: Sequence[Example]) -> None:
    """Gives ``job``'s tokenizer the tokens of every text of ``examples``. All must call.

    Args:
        examples: the same on every rank.

    Raises:
        CacheError: on every rank alike.
    """
    start = time.monotonic()
    root = Path(job.config.checkpoint.root) / FOLDER
    texts = {job.any_prompts.slot_text(example) for example in examples}
    problem = None
    # The first rank of each machine, or of a shared file system, makes them; others wait at a lock.
    try:
        job.tokenizer.keep(root, texts)
    except OSError as error:
        problem = error
    raise_agreed(problem, job.groups.world, what="the tokens' files")
    if job.groups.rank == 0:
        log.info("tokens of %d texts in %s, %.1f s", len(texts), root, time.monotonic() - start)
