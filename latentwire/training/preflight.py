"""Everything that can be refused is refused here, before any process group starts.

Models, data, layout, installed extras and the existing run are looked at; every problem found is
reported at once.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from latentwire import config_file, strict_yaml
from latentwire.checkpointing.changes import changed_keys
from latentwire.checkpointing.commit import LATEST, STAGES, newest, step_named, steps
from latentwire.config import (
    Config,
    ConfigError,
)
from latentwire.data import token_cache
from latentwire.data.sources import check_source
from latentwire.diagnostics.sinks import missing_package
from latentwire.diagnostics.stream import is_stream
from latentwire.distributed.bitsandbytes_library import library_problem
from latentwire.distributed.deepspeed_library import is_installed
from latentwire.distributed.ds_config import read_ds_config
from latentwire.distributed.topology import Topology, batch_problems, plan
from latentwire.training import token_build
from latentwire.training.held_out import held_out_problems
from latentwire.training.model_checks import decoder_problems, encoder_problems, first_line
from latentwire.training.prompt_checks import prompt_problems, sample_examples
from latentwire.training.start import wish_problem
from latentwire.training.status import FILES, is_foreign
from latentwire.training.teacher_build import cache_folder
from latentwire.writable import folder_problems

_EVALUATION_KEYS = (
    "eval.",
    "data.",
    "train.",
    "validation.",
    "optim.",
    "objectives.",
    "teacher.",
    "precision",
)
"""What an evaluation may set differently from the run that trained the wire."""
_PAIRS = ("tiny", "tiny_hard")
"""Folders of ``checkpoints`` that are models and no runs."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked job: its configuration, its layout and its folders."""

    config: Config
    topology: Topology
    run_folder: Path
    checkpoint_folder: Path

    @property
    def diagnostics(self) -> Path:
        """The diagnostics stream's file."""
        own = self.config.diagnostics.diagnostic_log
        return self.run_folder / FILES["diagnostics"] if own is None else Path(own)


def preflight(
    config: Config,
    *,
    world_size: int,
    ranks_per_node: int | None = None,
    fresh: bool = False,
    overwrite: bool = False,
    evaluation: bool = False,
    exported: bool = False,
    trained: Config | None = None,
    resume_from: str | None = None,
) -> Plan:
    """Checks the job against this machine.

    Args:
        ranks_per_node: ranks of each node, where the launcher has told.
        fresh: the run must not exist yet.
        overwrite: with ``fresh``, an existing run will be deleted.
        evaluation: only an existing run is evaluated, so evaluation and data keys may differ.
        exported: its wire comes from an export, which holds the encoder.
        trained: what an exported wire was trained with.
        resume_from: the step that the run goes on from, in place of its newest.

    Raises:
        ConfigError: with every problem found.
    """
    problems: list[str] = []
    topology = None
    try:
        topology = plan(
            config.decoders,
            placement=config.placement,
            world_size=world_size,
            ranks_per_node=ranks_per_node,
        )
        for key, size in config.train.batch_sizes().items():
            problems += batch_problems(
                topology, batch_size=size, accumulation=config.train.accumulation, key=key
            )
    except ValueError as error:
        problems.append(str(error))
    problems += _extra_problems(config)
    problems += [] if exported else encoder_problems(config)
    data = config.data
    data_problems = check_source(
        source=data.source,
        path=data.path,
        setting=data.setting,
        seed=config.run.seed,
        validation_path=data.validation_path,
        test_path=data.test_path,
    )
    examples = [] if data_problems else sample_examples(config)
    for name in config.decoders:
        found = decoder_problems(config, name)
        if not any(problem.startswith(f"decoders.{name}.model:") for problem in found):
            found += prompt_problems(config, name, examples)
        problems += found
    run_folder = Path(config.run.root) / config.run.tag
    checkpoint_folder = Path(config.checkpoint.root) / config.run.tag
    if trained is None:
        trained = recorded_config(run_folder, checkpoint_folder) if evaluation else config
    problems += data_problems or held_out_problems(config, trained=trained, evaluation=evaluation)
    roots = {"run.root": config.run.root, "checkpoint.root": config.checkpoint.root}
    if config.teacher.cache and not evaluation:
        roots["teacher.folder"] = str(cache_folder(config))
    problems += folder_problems(roots)
    problems += _stream_problems(config.diagnostics.diagnostic_log)
    for pair in _PAIRS:
        if (Path(config.checkpoint.root) / pair).resolve() == checkpoint_folder.resolve():
            problems.append(f"run.tag: '{pair}' is a folder of embedded models; choose another")
    if config.teacher.cache and cache_folder(config).resolve() == checkpoint_folder.resolve():
        problems.append(
            f"run.tag: '{config.run.tag}' is taken by the teacher cache; choose another, or a "
            "teacher.folder"
        )
    if config.data.token_cache and not evaluation:
        problems += token_cache.problems()
        if config.run.tag == token_build.FOLDER:
            problems.append(f"run.tag: '{config.run.tag}' is the token cache's; choose another")
    if evaluation and not exported and not checkpoint_folder.exists():
        tag = config.run.tag
        problems.append(f"run.tag: '{tag}' has no checkpoint in {checkpoint_folder}; train it")
    if fresh and overwrite:
        problems += _foreign_problems(run_folder, checkpoint_folder)
    else:
        existing = "refuse" if fresh else "evaluate" if evaluation else "resume"
        problems += _run_problems(config, run_folder, checkpoint_folder, existing, resume_from)
    if problems:
        raise ConfigError(problems)
    assert topology is not None
    return Plan(
        config=config,
        topology=topology,
        run_folder=run_folder,
        checkpoint_folder=checkpoint_folder,
    )


def _foreign_problems(run_folder: Path, checkpoint_folder: Path) -> list[str]:
    """Why the folders of a run may not be deleted: they hold files, and none that runs leave."""
    of_steps = (*(f"stage{stage}" for stage in STAGES), LATEST)
    found = {
        "run.root": (run_folder, is_foreign(run_folder)),
        "checkpoint.root": (checkpoint_folder, is_foreign(checkpoint_folder, known=of_steps)),
    }
    return [
        f"{key}: --fresh --overwrite would delete {folder}, which holds files but no run; choose "
        "another run.tag, or delete it yourself"
        for key, (folder, is_others) in found.items()
        if is_others
    ]


def _stream_problems(path: str | None) -> list[str]:
    """Whether a diagnostics stream can be written, or continued, at a path of the user's."""
    key = "diagnostics.diagnostic_log"
    if path is None:
        return []
    file = Path(path)
    if not path or file.is_dir():
        return [f"{key}: '{path}' is a folder; give a file, e.g. {path or '.'}/diagnostics.jsonl"]
    if not file.exists():
        return folder_problems({key: str(file.parent)})
    # Rows that a resumed run repeats are dropped from the file, so it must be one of ours.
    if not file.is_file():
        return [f"{key}: '{path}' is no regular file; give another, or leave the key out"]
    if not os.access(file, os.R_OK | os.W_OK):
        return [f"{key}: '{path}' cannot be read and written; choose another file"]
    if not is_stream(file):
        return [f"{key}: '{path}' exists and is no diagnostics stream; choose another file"]
    return []


def _extra_problems(config: Config) -> list[str]:
    found = []
    if config.sharding.backend == "deepspeed":
        if is_installed():
            found += _ds_config_problems(config.sharding.ds_config)
        else:
            found.append(
                "sharding.backend: 'deepspeed' is not installed; "
                "pip install -e '.[deepspeed]', or use sharding.backend=fsdp"
            )
    found += _bitsandbytes_problems(config)
    found += [
        f"diagnostics.sinks: '{name}' {problem}"
        for name in config.diagnostics.sinks
        if (problem := missing_package(name))
    ]
    return found + _gpu_problems(config)


def _gpu_problems(config: Config) -> list[str]:
    """What this node's GPUs cannot do; nothing on a CPU. Takes no memory of theirs."""
    if not torch.cuda.is_available():
        return []
    found = []
    num_gpus, num_ranks = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num_ranks > num_gpus:
        found.append(
            f"--nproc-per-node: {num_ranks} processes on a node with {num_gpus} GPU(s), and each "
            f"needs its own; start {num_gpus} (NPROC={num_gpus} for the scripts), or run on the "
            "CPU with CUDA_VISIBLE_DEVICES=''"
        )
    keys: dict[str, str | None] = {"precision": config.precision}
    keys |= {f"decoders.{name}.precision": one.precision for name, one in config.decoders.items()}
    asked = [key for key, precision in keys.items() if precision == "bf16"]
    if asked and not torch.cuda.is_bf16_supported(including_emulation=False):
        found += [f"{key}: this GPU has no bf16; use fp32" for key in asked]
    return found


def _bitsandbytes_problems(config: Config) -> list[str]:
    # The library takes seconds to import, so only whoever asks for it waits.
    quantised = {n: d.quantization for n, d in config.decoders.items() if d.quantization != "none"}
    found = []
    if quantised and (problem := library_problem(optimizer=False)):
        found += [
            f"decoders.{name}.quantization: '{kind}' {problem}, or use none"
            for name, kind in quantised.items()
        ]
    optimizer = config.optim.optimizer
    if optimizer == "adamw8bit" and (problem := library_problem(optimizer=True)):
        found.append(f"optim.optimizer: '{optimizer}' {problem}, or use adamw")
    return found


def _ds_config_problems(path: str | None) -> list[str]:
    try:
        read_ds_config(path)
    except ConfigError as error:
        return error.problems
    return []


def _run_problems(
    config: Config,
    run_folder: Path,
    checkpoint_folder: Path,
    existing: str,
    resume_from: str | None,
) -> list[str]:
    """Whether the command fits a run of that name that exists already."""
    before = recorded_config(run_folder, checkpoint_folder)
    if before is None:
        return []
    if existing == "refuse":
        return [
            f"--fresh: run '{config.run.tag}' exists; add --overwrite to delete it, or choose "
            "another run.tag"
        ]
    changes = changed_keys(before, config)
    if existing == "evaluate":
        changes = [change for change in changes if not change.startswith(_EVALUATION_KEYS)]
        return [f"{change}; {_instead(change)}" for change in changes]
    found = [f"{change}; {_instead(change)}" for change in changes]
    if resume_from is not None:
        # Here too, before the attempt marks the run as its own.
        problem = wish_problem(checkpoint_folder, steps(checkpoint_folder), resume_from)
        found += [problem] if problem else []
    return found or _too_late(before, config, checkpoint_folder, resume_from)


def _too_late(
    before: Config, config: Config, checkpoint_folder: Path, resume_from: str | None
) -> list[str]:
    """More of Stage A where the run goes on in Stage B: it would not be trained."""
    step = step_named(checkpoint_folder, resume_from) if resume_from else newest(checkpoint_folder)
    if step is None or step.stage == STAGES[0]:
        return []
    old, new = before.train.stage_a, config.train.stage_a
    return [
        f"train.stage_a.{key}: the run has '{was}', the command '{now}', but it is in Stage B "
        "already; keep the run's value, or go back with --resume-from and a step of Stage A"
        for key, was, now in (
            ("steps", old.steps, new.steps),
            ("epochs", old.epochs, new.epochs),
        )
        if was != now
    ]


def _instead(change: str) -> str:
    """What may be done where a key of a run cannot change."""
    if change.startswith("eval."):
        return "evaluate the run so with `latentwire eval`, or choose another run.tag"
    return "keep the run's value, or choose another run.tag"


def recorded_config(run_folder: Path, checkpoint_folder: Path) -> Config | None:
    """The configuration an existing run was started with; None for a new one."""
    step, problem = newest(checkpoint_folder), ""
    for path in (run_folder / "config.yaml", step.path / "config.yaml" if step else None):
        if path is not None and path.is_file():
            try:
                tree = strict_yaml.load_file(path)
                if not isinstance(tree, dict):
                    raise TypeError("it holds no configuration")
                return config_file.from_tree(tree)
            except (yaml.YAMLError, AttributeError, TypeError) as error:
                problem = f"{path} cannot be read: {first_line(error)}"
    if problem:
        raise ConfigError([problem])
    return None
