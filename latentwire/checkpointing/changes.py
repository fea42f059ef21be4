"""What a resumed run may set differently from the run that it continues."""

from latentwire.config import Config, flatten

_MAY_CHANGE = (
    "placement",
    "sharding.",
    "checkpoint.interval",
    "checkpoint.background",
    "checkpoint.keep_last",
    "checkpoint.keep_every",
    "checkpoint.on_error",
    "data.prefetch",
    "data.token_cache",
    "diagnostics.",
    # What a run is told to do when its memory is too small.
    "encoder.activation_checkpointing",
    "train.accumulation",
    "eval.batch_size",
    "distributed.",
    "train.max_skipped",
    "teacher.folder",
    # What a best checkpoint is, the samples and the metric, may not.
    "validation.interval",
    "validation.patience",
)
_MAY_CHANGE_OF_DECODER = tuple(
    ".ranks .share .shard .reshard .compile .gradient_checkpointing".split()
)


def changed_keys(before: Config, now: Config) -> list[str]:
    """Keys that differ although a resumed run may not change them, each with both values.

    World size, placement, sharding, backend, intervals, patience and more steps may change.
    """
    old, new = flatten(before), flatten(now)
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        if old.get(key) == new.get(key) or key.startswith(_MAY_CHANGE):
            continue
        if key.startswith("decoders.") and key.endswith(_MAY_CHANGE_OF_DECODER):
            continue
        if key.startswith("train.stage_") and key.endswith((".steps", ".epochs")):
            was, is_now = old.get(key), new.get(key)
            if isinstance(was, int | float) and isinstance(is_now, int | float) and is_now > was:
                continue
        found.append(f"{key}: the run has '{old.get(key)}', the command '{new.get(key)}'")
    if not found and list(before.decoders) != list(now.decoders):
        # A decoder's private latents are found by its place.
        was, is_now = ", ".join(before.decoders), ", ".join(now.decoders)
        found.append(f"decoders: the run has them in the order {was}, the command in {is_now}")
    return found
