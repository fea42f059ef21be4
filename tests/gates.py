"""The combinations that every gate must hold for: each encoder with each way into a decoder."""

ENCODERS = {
    "lm": [],
    "stq": ["encoder.kind=stq", "wire.pooling=queries", "wire.num_latents=16"],
    # Bytes are several to a token.
    "byte": ["encoder.kind=byte", "wire.pooling=block", "wire.ratio=16"],
}
_PREFIX = ["adapter.use_deep_prefix=true", "optim.prefix_lr=4e-3"]
PATHS = {
    "soft": [],
    "deep": [*_PREFIX, "adapter.use_soft_prompt=false"],
    "both": _PREFIX,
}
COMBINATIONS = {
    f"{encoder}-{path}": [*ENCODERS[encoder], *PATHS[path]]
    for encoder in ENCODERS
    for path in PATHS
}
OVERFIT_STEPS = {
    "lm-soft": 60,
    "lm-deep": 100,
    "lm-both": 60,
    "stq-soft": 80,
    "stq-deep": 100,
    "stq-both": 60,
    "byte-soft": 160,
    "byte-deep": 160,
    "byte-both": 100,
}
"""What 64 examples take; an encoder that starts from nothing takes longest."""
SHORT = ("lm-soft", "stq-deep", "byte-both")
"""A third of them, with each encoder and each path once."""

EVERYTHING = [
    "adapter.use_deep_prefix=true",
    "adapter.deep_prefix_len=4",
    "gist.use_gist_head=true",
    "gist.gist_len=6",
    "gist.hidden=32",
    "wire.latent_private_len=2",
    "wire.refiner.layers=1",
    "decoders.qwen.lora.rank=2",
    "objectives.kce=0.5",
    "objectives.k_start=1",
    "objectives.first_peak=2",
    "objectives.state=0.5",
    "objectives.latent_align=0.3",
    "objectives.manifold=0.3",
    "objectives.scale_l2=0.3",
    "objectives.ae=0.2",
    "objectives.continuation=0.2",
    "train.stage_a.warmup_text_latent_prob=1",
    "train.stage_a.ratios=2,4",
    "train.stage_a.ratio_mode=summed",
    "train.stage_a.latent_keep_start=0.7",
]
"""Every component and every objective at once."""
