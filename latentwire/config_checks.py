"""What can be said against a configuration without files, models or ranks, all at once."""

import math
import re
from collections.abc import Mapping
from typing import Any

from latentwire.config import OBJECTIVES, SINKS, Config, DecoderConfig, StageConfig, flatten
from latentwire.config_training import ObjectivesConfig

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_STAGES = ("train.stage_a", "train.stage_b")
_POSITIVE = (
    "data.questions_per_context data.max_answer_tokens wire.ratio wire.d_z wire.heads "
    "wire.refiner.heads encoder.byte.width encoder.byte.layers encoder.byte.heads "
    "adapter.hidden_mult adapter.init_scale gist.gist_len gist.hidden gist.heads "
    "objectives.k objectives.kd_temperature objectives.auto_interval optim.encoder_lr "
    "optim.adapter_lr optim.prefix_lr train.batch_size train.accumulation "
    "diagnostics.log_interval diagnostics.queue_rows diagnostics.step_close_seconds "
    "diagnostics.drain_seconds diagnostics.health_samples eval.batch_size eval.max_new_tokens "
    "distributed.timeout distributed.step_timeout distributed.max_attempts encoder.lora.alpha"
).split() + [
    f"{stage}.{name}"
    for stage in _STAGES
    for name in ("lr_scale", "span_start", "span_end", "latent_keep_power")
]
_NOT_NEGATIVE = (
    "run.seed checkpoint.interval checkpoint.keep_last checkpoint.keep_every data.samples "
    "data.prefetch data.length_buckets "
    "wire.num_latents wire.latent_private_len "
    "wire.refiner.layers encoder.max_tokens encoder.lora.rank adapter.deep_prefix_len "
    "gist.layers objectives.span_layer objectives.kd_positions objectives.ae_tokens "
    "optim.weight_decay optim.max_grad_norm validation.interval validation.samples "
    "validation.patience diagnostics.grad_diag_interval diagnostics.health_interval eval.samples "
    "diagnostics.health_warmup "
    "train.max_skipped teacher.top_k"
).split() + [
    *(f"objectives.{name}" for name in OBJECTIVES),
    *(
        f"{stage}.{name}"
        for stage in _STAGES
        for name in ("warmup_steps", "encoder_start", "warmup_text_latent_steps")
    ),
]
_BELOW_ONE = "optim.beta1 optim.beta2 adapter.dropout adapter.deep_prefix_dropout".split()
_FRACTION = "optim.min_lr objectives.first_hold".split() + [
    f"{stage}.{name}"
    for stage in _STAGES
    for name in (
        "warmup_text_latent_prob",
        "warmup_text_latent_share",
        "warmup_text_latent_share_end",
        "latent_keep_start",
        "latent_keep_end",
    )
]
_MOST_WHOLE = 10**9
"""Of a whole number that no other limit is for; more is a slip, or no machine could do it."""
_MOST: dict[str, float] = {
    "run.seed": 10**18,
    **dict.fromkeys(
        "wire.d_z encoder.byte.width encoder.lora.rank gist.hidden".split(),
        1 << 17,
    ),
    **dict.fromkeys("wire.refiner.layers encoder.byte.layers gist.layers".split(), 1000),
    **dict.fromkeys(
        (
            "wire.num_latents wire.latent_private_len adapter.deep_prefix_len gist.gist_len "
            "train.batch_size train.stage_a.batch_size train.stage_b.batch_size eval.batch_size"
        ).split(),
        1 << 20,
    ),
    **dict.fromkeys(
        (
            "distributed.timeout distributed.step_timeout diagnostics.step_close_seconds "
            "diagnostics.drain_seconds"
        ).split(),
        30 * 24 * 3600,
    ),
    **dict.fromkeys("train.stage_a.epochs train.stage_b.epochs".split(), 10**6),
    "adapter.hidden_mult": 1000,
    "data.prefetch": 1000,
}
"""What sizes tensors, loops or clocks would fail in the midst of, where it is too large."""
_PARTS = "encoder refiner adapter deep_prefix gist lora".split()
"""As ``wire.parts`` names them."""
_RATIOS = (*(f"{stage}.ratios" for stage in _STAGES), "eval.ratios")


def problems(config: Config) -> list[str]:
    """Every problem of a well-typed configuration that shows without files, models or ranks."""
    flat = flatten(config)
    found = [
        f"{key}: {value} is no finite number"
        for key, value in flat.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if found:
        return found
    found += [f"{key}: {flat[key]} must be above 0" for key in _POSITIVE if not flat[key] > 0]
    found += _size_problems(flat)
    found += [f"{key}: {flat[key]} must be below 1" for key in _BELOW_ONE if not 0 <= flat[key] < 1]
    found += [f"{key}: {flat[key]} must be 0 or more" for key in _NOT_NEGATIVE if flat[key] < 0]
    for key in _RATIOS:
        if any(ratio < 1 for ratio in flat[key]):
            found.append(f"{key}: {list(flat[key])} must be 1 or more")
        is_drawn = flat.get(key.replace(".ratios", ".ratio_mode")) == "sampled"
        if len(set(flat[key])) < len(flat[key]) and not is_drawn:
            found.append(f"{key}: {list(flat[key])} must hold each ratio once")
        if flat[key] and config.wire.num_latents:
            found.append(
                f"{key}: {list(flat[key])}, but wire.num_latents={config.wire.num_latents} fixes "
                "the wire's length; use 0 there, or remove the ratios"
            )
    found += [
        f"{key}: {flat[key]} must lie between 0 and 1"
        for key in _FRACTION
        if not 0 <= flat[key] <= 1
    ]
    if not _TAG.fullmatch(config.run.tag):
        found.append(
            f"run.tag: '{config.run.tag}' names a folder: use letters, digits, '.', '_' and '-', "
            "starting with a letter or digit"
        )
    found += _wire_problems(config)
    found += _decoder_problems(config)
    found += _objective_problems(config)
    found += _diagnostics_problems(config)
    for slot in ("{context}", "{question}"):
        if config.data.template.count(slot) != 1:
            found.append(
                f"data.template: needs {slot} exactly once, "
                f"has it {config.data.template.count(slot)} times"
            )
    if config.data.anchor != config.data.anchor.rstrip() or not config.data.anchor:
        found.append(
            f"data.anchor: {config.data.anchor!r} must hold text and end in none but it: the space "
            "before an answer belongs to the answer's first token"
        )
    for key, stage in zip(_STAGES, (config.train.stage_a, config.train.stage_b), strict=True):
        found += _stage_problems(config, key, stage)
    parts = config.train.accumulation
    for key, size in config.train.batch_sizes().items():
        if size > 0 and parts > 0 and size % parts:
            below, above = size // parts * parts, (size // parts + 1) * parts
            nearest = f"{below} or {above}" if below else str(above)
            found.append(
                f"{key}: {size} is not a multiple of train.accumulation {parts}; use {nearest}"
            )
    if config.sharding.backend == "deepspeed" and config.sharding.ds_config is None:
        found.append("sharding.ds_config: missing; give a file, e.g. ds_configs/zero2.json")
    if config.validation.patience and not config.validation.interval:
        found.append(
            f"validation.patience: {config.validation.patience}, but validation.interval is 0, so "
            "nothing is validated; set an interval, or the patience to 0"
        )
    if config.optim.optimizer == "adamw8bit" and config.sharding.backend != "fsdp":
        found.append(
            "optim.optimizer: 'adamw8bit' is for sharding.backend=fsdp; ZeRO's own partitions "
            "keep fp32 moments: use adamw, or sharding.backend=fsdp"
        )
    return found


def _size_problems(flat: Mapping[str, Any]) -> list[str]:
    """Every number that is larger than it can be meant."""
    found = []
    for key, value in flat.items():
        numbers = value if isinstance(value, tuple) else (value,)
        whole = any(isinstance(number, int) for number in numbers)
        limit = _MOST.get(key, _MOST_WHOLE if whole else math.inf)
        if any(isinstance(number, int | float) and number > limit for number in numbers):
            shown = list(value) if isinstance(value, tuple) else value
            found.append(f"{key}: {shown} must be {limit} at most")
    return found


def _wire_problems(config: Config) -> list[str]:
    encoder, wire, adapter = config.encoder, config.wire, config.adapter
    found = []
    if encoder.kind != "byte" and not encoder.model:
        found.append("encoder.model: missing; give a folder or a hub id of a causal LM")
    if encoder.kind != "lm" and encoder.lora.rank:
        found.append(
            f"encoder.lora.rank: {encoder.lora.rank}, but encoder.kind '{encoder.kind}' trains no "
            "language model; use 0, or encoder.kind=lm"
        )
    if encoder.kind != "stq" and encoder.layers:
        found.append(
            f"encoder.layers: {list(encoder.layers)} are for encoder.kind=stq; remove them"
        )
    if encoder.kind != "lm" and encoder.activation_checkpointing:
        found.append(
            f"encoder.activation_checkpointing: true, but encoder.kind '{encoder.kind}' trains no "
            "language model; use false"
        )
    if any(layer < 0 for layer in encoder.layers):
        found.append(f"encoder.layers: {list(encoder.layers)} must be 0 or more")
    if encoder.max_tokens == 1:
        found.append("encoder.max_tokens: 1 leaves no room for a text beside BOS; use more, or 0")
    if wire.pooling == "queries" and not wire.num_latents:
        found.append(
            "wire.num_latents: 0, but pooling 'queries' has a fixed number of latents; set it, or "
            "use pooling block or mean"
        )
    pooled = wire.pooling != "mean" or wire.latent_private_len or adapter.deep_prefix_len
    for key, heads, width, is_used in (
        ("wire.heads", wire.heads, wire.d_z, pooled),
        ("wire.refiner.heads", wire.refiner.heads, wire.d_z, wire.refiner.layers),
        ("encoder.byte.heads", encoder.byte.heads, encoder.byte.width, encoder.kind == "byte"),
        ("gist.heads", config.gist.heads, config.gist.hidden, config.gist.use_gist_head),
    ):
        if is_used and heads > 0 and width % heads:
            found.append(f"{key}: {heads} must divide the width {width}")
    if not adapter.use_soft_prompt and not adapter.use_deep_prefix:
        found.append(
            "adapter.use_soft_prompt: false, and adapter.use_deep_prefix is false too, so no "
            "decoder would read the wire; set one of them to true"
        )
    if adapter.deep_prefix_len and not adapter.use_deep_prefix:
        found.append(
            f"adapter.deep_prefix_len: {adapter.deep_prefix_len}, but adapter.use_deep_prefix is "
            "false; set it to true, or the length to 0"
        )
    return found


def _objective_problems(config: Config) -> list[str]:
    objectives, gist = config.objectives, config.gist
    found = []
    weights = objectives.weights | ({} if gist.use_gist_head else {"gist": 0.0})
    weights["first"] = max(weights["first"], objectives.first_peak or 0.0)
    if not any(weight > 0 for weight in weights.values()):
        found.append("objectives: every weight is 0, so nothing would be trained")
    if objectives.first_peak is not None and objectives.first_peak < objectives.first:
        found.append(
            f"objectives.first_peak: {objectives.first_peak} is below objectives.first "
            f"{objectives.first}, to which it falls"
        )
    # Its default is no one's wish, and cannot be told from one of that weight.
    if not gist.use_gist_head and objectives.gist not in (0, ObjectivesConfig.gist):
        found.append(
            f"objectives.gist: {objectives.gist}, but gist.use_gist_head is false, so nothing "
            "would be trained for it; set it to true, or remove the weight"
        )
    stages = (config.train.stage_a, config.train.stage_b)
    mixed = [stage for stage in stages if stage.warmup_text_latent_prob > 0]
    if weights["continuation"] > 0 and not any(map(_has_steps, mixed)):
        found.append(
            f"objectives.continuation: {weights['continuation']}, but no step is mixed, so there "
            "is nothing to go on with; set train.stage_a.warmup_text_latent_prob, in a stage that "
            "has steps, or use 0"
        )
    if config.teacher.cache and weights["state"] > 0:
        found.append(
            f"teacher.cache: true, but objectives.state {weights['state']} needs the decoder to "
            "read the text in every step, so nothing would be saved; use false, or state 0"
        )
    if config.data.token_cache and config.encoder.kind == "byte":
        found.append(
            "data.token_cache: true, but encoder.kind byte reads letters, of which nothing need be "
            "kept; use false"
        )
    if objectives.k_start is not None and objectives.k_start < 1:
        found.append(f"objectives.k_start: {objectives.k_start} must be 1 or more, or null")
    if any(layer < 1 for layer in objectives.state_layers):
        found.append(
            f"objectives.state_layers: {list(objectives.state_layers)} must be 1 or more: the "
            "states after the first layer are 1"
        )
    if not config.adapter.use_soft_prompt:
        found += [
            f"objectives.{name}: {weights[name]}, but it is about the soft prompt, which "
            "adapter.use_soft_prompt=false leaves out; use 0"
            for name in ("latent_align", "manifold", "scale_l2")
            if weights[name] > 0
        ]
    unknown = [name for name in config.diagnostics.grad_diag_components if name not in OBJECTIVES]
    if unknown:
        found.append(
            f"diagnostics.grad_diag_components: {', '.join(unknown)} is no objective; there are "
            f"{', '.join(OBJECTIVES)}"
        )
    missing = [] if config.gist.use_gist_head else ["gist"]
    missing += [] if config.adapter.use_soft_prompt else ["latent_align", "manifold", "scale_l2"]
    if never := [name for name in config.diagnostics.grad_diag_components if name in missing]:
        found.append(
            f"diagnostics.grad_diag_components: {', '.join(never)} is about a part that the "
            "configuration leaves out; take it off the list"
        )
    sinks = config.diagnostics.sinks
    unknown = [name for name in sinks if name not in SINKS]
    if unknown:
        found.append(
            f"diagnostics.sinks: {', '.join(unknown)} is no sink; there are {', '.join(SINKS)}"
        )
    if len(set(sinks)) < len(sinks):
        found.append(f"diagnostics.sinks: {list(sinks)} must hold each sink once")
    return found


def _diagnostics_problems(config: Config) -> list[str]:
    units, found = config.diagnostics.grad_diag_units, []
    unknown = [name for name in units if name not in (*_PARTS, "none")]
    if unknown:
        found.append(
            f"diagnostics.grad_diag_units: {', '.join(unknown)} is no trained part; there are "
            f"{', '.join(_PARTS)}, and none for none of them"
        )
    elif "none" in units and len(units) > 1:
        found.append(
            "diagnostics.grad_diag_units: none stands alone; leave it out, or the other names"
        )
    return found


def _has_steps(stage: StageConfig) -> bool:
    return (stage.steps or 0) > 0 or (stage.epochs or 0) > 0


def _stage_problems(config: Config, key: str, stage: StageConfig) -> list[str]:
    found = []
    if (stage.steps is None) == (stage.epochs is None):
        found.append(f"{key}: give either steps or epochs (set the other to null)")
    for name, number in (("steps", stage.steps), ("epochs", stage.epochs)):
        if number is not None and number < 0:
            found.append(f"{key}.{name}: {number} must be 0 or more")
    if stage.samples is not None and stage.samples < 0:
        found.append(f"{key}.samples: {stage.samples} must be 0 or more, or null")
    if stage.batch_size is not None and stage.batch_size < 1:
        found.append(f"{key}.batch_size: {stage.batch_size} must be 1 or more, or null")
    if stage.latent_keep_start == 0 or stage.latent_keep_end == 0:
        found.append(f"{key}.latent_keep_start, latent_keep_end: 0 would leave no latent")
    return found


def _compile_problems(key: str, decoder: DecoderConfig) -> list[str]:
    others = {
        f"{key}.quantization '{decoder.quantization}'": decoder.quantization != "none",
        f"{key}.shard {decoder.shard}": decoder.shard > 1,
        f"{key}.lora.rank {decoder.lora.rank}": decoder.lora.rank > 0,
    }
    return [
        f"{key}.compile: true with {other}: such layers change as they are read, and are not "
        "compiled; set one of them back"
        for other, is_set in others.items()
        if is_set
    ]


def _decoder_problems(config: Config) -> list[str]:
    found = []
    if not config.decoders:
        found.append("decoders: none given; name at least one, as decoders.<name>.model")
    for name, decoder in config.decoders.items():
        key = f"decoders.{name}"
        if not _NAME.fullmatch(name):
            found.append(f"{key}: a decoder's name is lower-case letters, digits and '_'")
        if not decoder.model:
            found.append(f"{key}.model: missing; give a folder or a hub id of a causal LM")
        if decoder.ranks is not None and decoder.ranks < 1:
            found.append(f"{key}.ranks: {decoder.ranks} must be 1 or more, or null")
        if decoder.lora.rank < 0 or decoder.lora.alpha <= 0:
            found.append(f"{key}.lora: rank must be 0 or more, alpha above 0")
        if decoder.share <= 0 or decoder.weight <= 0:
            found.append(f"{key}: share and weight must be above 0")
        if decoder.compile:
            found += _compile_problems(key, decoder)
        if decoder.shard < 1:
            found.append(f"{key}.shard: {decoder.shard} must be 1 or more; 1 shards nothing")
        elif decoder.shard > 1 and decoder.quantization == "int8":
            found.append(
                f"{key}.quantization: 'int8' with {key}.shard {decoder.shard}: bitsandbytes keeps "
                "the scales of int8 weights where FSDP2 cannot shard them; use nf4 or none, or "
                "shard=1"
            )
        elif decoder.shard == 1 and not decoder.reshard:
            found.append(
                f"{key}.reshard: false, but {key}.shard is 1, so nothing is gathered; set a shard, "
                "or remove it"
            )
    return found
