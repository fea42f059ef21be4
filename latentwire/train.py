"""``torchrun ... -m latentwire.train --recipe NAME [key=value ...]``: trains a wire."""

import errno
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentwire import config_file
from latentwire.arguments import Arguments, parse
from latentwire.checkpointing.writer import SaveError
from latentwire.config import ConfigError
from latentwire.distributed import groups as process_groups
from latentwire.distributed.peers import LostPeerError
from latentwire.files import is_bad_name, name_problem
from latentwire.training import run
from latentwire.training.attempts import has_begun
from latentwire.training.cache_error import CacheError
from latentwire.training.dry_run import describe
from latentwire.training.error_file import leave_error_file
from latentwire.training.exported_eval import evaluate_exported, exported_config, trained_with
from latentwire.training.guard import NonFiniteError
from latentwire.training.outcome import Outcome
from latentwire.training.preflight import Plan, preflight
from latentwire.training.run_folder import log_to
from latentwire.training.run_lock import RunLock, is_held
from latentwire.training.status import FILES, is_foreign, note_refusal, read_status, write_status
from latentwire.training.unreadable import UnreadableError

log = logging.getLogger(__name__)

_HELD_BACK_SECONDS = 30.0
_LAST_WORDS_SECONDS = 3.0
_INTERRUPTED = 130
"""What a shell calls the end by SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains; returns the process's exit code."""
    return _guarded(arguments, _train, makes_runs=True)


def main_eval(arguments: Sequence[str] | None = None) -> int:
    """Evaluates the best or last checkpoint of a run; returns the process's exit code."""
    return _guarded(arguments, _evaluate, makes_runs=False)


@contextmanager
def _names_said() -> Iterator[None]:
    """A name that cannot be used is a message while nothing has begun; later it is a failure.

    Other errors may pass, as those of a disk: a scheduler's job is queued again after them.

    Raises:
        ConfigError: that message.
    """
    try:
        yield
    except OSError as error:
        is_mine = is_bad_name(error) or isinstance(error, PermissionError)
        if error.filename is None or not is_mine:
            raise
        raise ConfigError([name_problem(error)]) from None


def _train(options: Arguments) -> int:
    if options.wire is not None:
        raise ConfigError(["--wire: an exported wire is evaluated, not trained; latentwire eval"])
    with _names_said():
        config = config_file.load(options.recipe, options.overrides)
        if has_begun(Path(config.run.root) / config.run.tag):
            # What the first attempt has deleted or gone back from is what this one goes on with.
            options = replace(options, fresh=False, overwrite=False, resume_from=None)
        plan = preflight(
            config,
            world_size=process_groups.launch_world_size(),
            ranks_per_node=process_groups.launch_ranks_per_node(),
            fresh=options.fresh,
            overwrite=options.overwrite,
            resume_from=options.resume_from,
        )
    if options.dry_run:
        return _describe(plan)
    wipe = options.fresh and options.overwrite
    return _supervised(
        plan,
        lambda: run.train(plan, wipe=wipe, resume_from=options.resume_from),
        trains=True,
    )


def _evaluate(options: Arguments) -> int:
    given = {"--fresh": options.fresh, "--resume-from": options.resume_from is not None}
    if names := [name for name, is_given in given.items() if is_given]:
        raise ConfigError([f"{name}: for training alone; leave it out" for name in names])
    if options.wire is not None:
        return _evaluate_exported(Path(options.wire), options)
    with _names_said():
        config = config_file.load(options.recipe, options.overrides)
        # Evaluation keys may differ from the recorded run; what shapes the wire may not.
        plan = preflight(
            config,
            world_size=process_groups.launch_world_size(),
            ranks_per_node=process_groups.launch_ranks_per_node(),
            fresh=False,
            overwrite=False,
            evaluation=True,
        )
    if options.dry_run:
        return _describe(plan)
    return _supervised(plan, lambda: run.evaluate_only(plan))


def _evaluate_exported(folder: Path, options: Arguments) -> int:
    with _names_said():
        config = exported_config(folder, options.overrides)
        plan = preflight(
            config,
            world_size=process_groups.launch_world_size(),
            ranks_per_node=process_groups.launch_ranks_per_node(),
            evaluation=True,
            exported=True,
            trained=trained_with(folder),
        )
    return _supervised(plan, lambda: evaluate_exported(plan, folder), has_checkpoints=False)


def _describe(plan: Plan) -> int:
    if process_groups.launch_rank() == 0:
        print(describe(plan))
    return 0


def _supervised(
    plan: Plan,
    work: Callable[[], Outcome],
    *,
    has_checkpoints: bool = True,
    trains: bool = False,
) -> int:
    """Runs ``work``; a failure leaves its reason in the status and goes on its way.

    Args:
        has_checkpoints: the work reads or writes the run's own.
        trains: the work writes the diagnostics.
    """
    is_whole = False

    def whole() -> Outcome:
        nonlocal is_whole
        outcome = work()
        is_whole = True
        return outcome

    try:
        with _locked(plan, has_checkpoints=has_checkpoints, trains=trains):
            code = _recorded(plan, whole)
    except ConfigError as error:
        # Of the lock: nothing of the run that another job has may be touched.
        return _refuse(error, None)
    # Only where all ranks have come to the end: they leave together, and NCCL waits for all.
    if is_whole:
        process_groups.stop()
    return code


def _locked(plan: Plan, *, has_checkpoints: bool, trains: bool) -> AbstractContextManager[object]:
    """The run, for this job alone; rank 0 has it for all."""
    if process_groups.launch_rank() != 0:
        return nullcontext()
    folders = {"run.root": plan.run_folder}
    if has_checkpoints:
        folders["checkpoint.root"] = plan.checkpoint_folder
    is_shared = trains and plan.config.diagnostics.diagnostic_log is not None
    return RunLock(folders, files={"--diagnostic_log": plan.diagnostics} if is_shared else {})


def _recorded(plan: Plan, work: Callable[[], Outcome]) -> int:
    """Runs ``work``; how it ends goes into the run's status."""
    before = read_status(plan.run_folder)
    try:
        _mark_running(plan)
        return work().code
    except ConfigError as error:
        # What a user can mend ends as a message; the launcher ends the other ranks.
        return _refuse(error, plan.run_folder, is_finished=_is_as_it_ended(plan, before))
    except (SaveError, CacheError, UnreadableError) as error:
        # On every rank alike; rank 0 has said which step is the last good one.
        _failed(plan.run_folder, error)
        _hear_rank_zero()
        if process_groups.launch_rank() == 0:
            mend = "free some space" if _is_full(error) else "when that is mended"
            full = "the disk is full: " if _is_full(error) else ""
            log.error("ended: %s%s; %s, the same command continues", full, error, mend)
        return 1
    except OSError as error:
        _failed(plan.run_folder, error)
        if not _is_full(error):
            raise
        log.error("the disk is full: %s; free some space, the same command continues", error)
        return 1
    except NonFiniteError as error:
        # Every rank raises it with the same words, and the last step is saved.
        _failed(plan.run_folder, error)
        _hear_rank_zero()
        if process_groups.launch_rank() == 0:
            log.error("ended: %s", error)
        return 1
    except LostPeerError as error:
        earlier = _failed(plan.run_folder, error)
        why = f" after {earlier}" if earlier else ""
        log.error("ended%s: %s; the same command goes on from the last checkpoint", why, error)
        return 1
    except RuntimeError as error:
        earlier = _failed(plan.run_folder, error)
        if earlier is None:
            raise
        # A collective that fails because another rank is gone: that rank's reason is the story.
        log.error("ended after %s (%s)", earlier, error)
        return 1
    except KeyboardInterrupt:
        # Before or after training, which takes it as the wish to save and end.
        if process_groups.launch_rank() == 0:
            state = "finished" if _is_as_it_ended(plan, before) else "stopped"
            code = 0 if state == "finished" else 1
            write_status(plan.run_folder, state=state, code=code, reason="asked by a signal")
        raise
    except BaseException as error:
        _failed(plan.run_folder, error)
        raise


def _hear_rank_zero() -> None:
    """Of an error that all ranks have alike: rank 0 says it, and the launcher would end it before
    it can where another is gone first."""
    if process_groups.launch_rank() != 0:
        time.sleep(_LAST_WORDS_SECONDS)


def _is_as_it_ended(plan: Plan, before: Mapping[str, Any]) -> bool:
    """Whether a run that was finished when its status was ``before`` is still what it was."""
    now = read_status(plan.run_folder)
    return (
        before.get("state") == "finished"
        and all(now.get(key) == before.get(key) for key in ("stage", "step"))
        and (plan.run_folder / FILES["metrics"]).exists()
    )


def _mark_running(plan: Plan) -> None:
    """From here on a failure in the status is one of this attempt."""
    if process_groups.launch_rank() == 0:
        try:
            write_status(plan.run_folder, state="running")
        except OSError as error:
            root = plan.config.run.root
            raise ConfigError([f"run.root: '{root}' cannot be written: {error}"]) from None


def _is_full(error: BaseException) -> bool:
    """Whether an error is that of a full disk."""
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


def _failed(folder: Path, error: BaseException) -> str | None:
    """Leaves the reason in the status, unless another rank has: then returns that one's.

    The first rank that fails is the one that knows why.
    """
    # What is known in words needs no name of a class.
    name = "" if isinstance(error, LostPeerError) else f"{type(error).__name__}: "
    reason = f"rank {process_groups.launch_rank()}: {name}{error}"
    clear = (SaveError, CacheError, UnreadableError, NonFiniteError, LostPeerError)
    is_clear = isinstance(error, clear) or _is_full(error)
    try:
        before = read_status(folder)
        is_second = before.get("state") == "failed"
        leave_error_file(error, is_clear=is_clear or is_second)
        if is_second:
            return str(before.get("reason"))
        write_status(folder, state="failed", code=1, reason=reason)
    except OSError:
        log.error("the status could not be written: %s", reason)
    return None


def _guarded(
    arguments: Sequence[str] | None, command: Callable[[Arguments], int], *, makes_runs: bool
) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    log_to(None, rank=process_groups.launch_rank())
    options = None
    try:
        options = parse(arguments)
        return command(options)
    except ConfigError as error:
        try:
            folder = _refused_run(options, makes_runs=makes_runs)
        except OSError:
            folder = None  # no folder of such a name can be
        return _refuse(error, folder)
    except KeyboardInterrupt:
        print("latentwire: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _refused_run(options: Arguments | None, *, makes_runs: bool) -> Path | None:
    """The run whose status is to say that a command was refused; None where none is.

    One that another job is at has that job's status, and what is no run gets none.
    """
    if options is None or options.dry_run:
        return None
    if options.wire is None:
        folder = config_file.guess_run_folder(options.recipe, options.overrides)
    else:
        folder, makes_runs = _exported_run(options), True
    if folder is None or not (makes_runs or folder.exists()) or is_foreign(folder):
        return None
    # Where rank 0 had nothing to refuse, it is the one that has the run.
    is_others = process_groups.launch_rank() == 0 and is_held(folder)
    return None if is_others else folder


def _exported_run(options: Arguments) -> Path | None:
    """Where an export's evaluation goes, as far as that can be told."""
    assert options.wire is not None
    try:
        config = exported_config(Path(options.wire), options.overrides)
    except (ConfigError, OSError):
        return None
    return Path(config.run.root) / config.run.tag


def _refuse(error: ConfigError, folder: Path | None, *, is_finished: bool = False) -> int:
    """Ends with code 2 and one message, printed by rank 0 only.

    Args:
        folder: of the run whose status is to say so.
        is_finished: it was before the command, which has not changed it.
    """
    leave_error_file(error, is_clear=True)
    rank = process_groups.launch_rank()
    if rank != 0:
        # Rank 0 finds the same problem and says so; ending first would have the launcher kill it
        # before it can. Whoever is still here after a while had a problem of its own node.
        time.sleep(_HELD_BACK_SECONDS)
    where = "" if rank == 0 else f"rank {rank}: "
    lines = "\n".join(f"  {problem}" for problem in error.problems)
    print(f"{where}latentwire cannot start:\n{lines}", file=sys.stderr, flush=True)
    if folder is not None:
        reason = "; ".join(error.problems)
        try:
            if is_finished:
                write_status(folder, state="finished", code=0)
            if read_status(folder).get("state") == "finished":
                note_refusal(folder, reason)
            else:
                write_status(folder, state="failed", code=2, reason=reason)
        except OSError as failure:
            if not is_bad_name(failure):  # of that it was told already
                print(f"the status could not be written: {failure}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
