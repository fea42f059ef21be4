"""Stage C on an exported wire: what was taken out of a run reads as it did in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from latentwire import config_file
from latentwire.checkpointing.commit import Step
from latentwire.checkpointing.components import to_state
from latentwire.config import Config, ConfigError
from latentwire.decoders.identity import identity_problems
from latentwire.distributed.assembly import Job, assemble
from latentwire.distributed.state_tensors import cut_tensor, own_rows
from latentwire.evaluation.runner import Interrupted
from latentwire.training.frozen_check import FrozenCheck
from latentwire.training.held_out import draw_evaluation
from latentwire.training.identity import identities
from latentwire.training.joining import joined
from latentwire.training.outcome import Outcome, stopped
from latentwire.training.preflight import Plan
from latentwire.training.resume import Checkpoint
from latentwire.training.run_folder import log_to
from latentwire.training.saving import unit_groups
from latentwire.training.signals import StopRequest
from latentwire.training.stage_c import evaluate_into_folder
from latentwire.training.status import FILES
from latentwire.wire import export_files
from latentwire.wire.exported import encoder_model
from latentwire.wire.parts import module_of


def load_into(job: Job, weights: Mapping[str, Tensor]) -> None:
    """Puts an export's weights into a job's units. All ranks must call."""
    groups = unit_groups(job)
    for unit, sharded in job.units.items():
        prefix = f"{module_of(unit)}."
        own = {
            f"weight.{name.removeprefix(prefix)}": cut_tensor(
                own_rows(tensor, groups[unit]).clone(), tensor.shape, groups[unit]
            )
            for name, tensor in weights.items()
            if name.startswith(prefix)
        }
        sharded.import_state(to_state(own, num_steps=0))


def trained_with(folder: Path) -> Config:
    """The configuration of the run that an export is of."""
    return config_file.from_tree(export_files.read_description(folder)["config"])


def exported_config(folder: Path, overrides: Sequence[str]) -> Config:
    """The configuration of an export, with overrides; by default a run of its own.

    Where files go and whether code that comes with a model may run, the overrides say alone.

    Raises:
        ConfigError: the folder is no export, an override is wrong, or the encoder needs code of
            its own, which is not trusted.
    """
    description = export_files.read_description(folder)
    own = config_file.from_tree(description["config"])
    tree = export_files.without_places(config_file.to_tree(export_files.without_trust(own)))
    tree["run"]["tag"] += "-exported"
    config = config_file.merged(tree, overrides)
    if own.encoder.trust_remote_code and not config.encoder.trust_remote_code:
        flag = "encoder.trust_remote_code=true"
        raise ConfigError([export_files.own_code(own, str(folder), flag=flag)])
    return export_files.export_config({"config": config_file.to_tree(config)}, folder)


def evaluate_exported(plan: Plan, folder: Path) -> Outcome:
    """Runs Stage C on an exported wire. Every rank calls it.

    Raises:
        ConfigError: a decoder is not the one that the wire was trained with.
    """
    config = plan.config
    with joined(plan) as groups, StopRequest() as stop:
        log_to(plan.run_folder / FILES["log"], rank=groups.rank)
        description = export_files.read_description(folder)
        examples = draw_evaluation(config)
        model = encoder_model(description, config)
        job = assemble(config, groups, encoder_model=model)
        frozen = FrozenCheck(job)
        now = identities(job, frozen.before)
        if problems := identity_problems(description["decoders"], now, where=str(folder)):
            raise ConfigError(problems)
        load_into(job, export_files.read_weights(folder))
        place = description["place"]
        step = Step(path=folder, stage=place["stage"], number=place["step"])
        checkpoint = Checkpoint(step=step, which="exported")
        try:
            evaluate_into_folder(plan, job, frozen, examples, checkpoint=checkpoint, stop=stop)
        except Interrupted as request:
            return stopped(plan, groups, request.reason)
    return Outcome(state="finished", code=0)
