"""A bench of models so small that a step takes a moment."""

import json
from collections.abc import Sequence
from pathlib import Path

SHAPES = {
    "llama": {"model_type": "llama", "hidden_size": 96, "num_attention_heads": 4, "vocab_size": 96},
    "qwen": {
        "model_type": "qwen2",
        "hidden_size": 144,
        "num_attention_heads": 3,
        "vocab_size": 128,
    },
}
LENGTHS = ["--context-tokens=20", "--question-tokens=5", "--answer-tokens=3", "--contexts=30"]


def small_bench(folder: Path, more: Sequence[str] = ()) -> list[str]:
    """Arguments of ``latentwire bench``; its models are made up in ``folder``."""
    models = {}
    for name, entry in SHAPES.items():
        models[name] = folder / f"shape-{name}"
        models[name].mkdir(parents=True, exist_ok=True)
        common = {"num_hidden_layers": 2, "num_key_value_heads": 1, "intermediate_size": 256}
        common["tie_word_embeddings"] = True
        (models[name] / "config.json").write_text(json.dumps(entry | common))
    return [
        f"encoder.model={models['llama']}",
        *(f"decoders.{name}.model={place}" for name, place in models.items()),
        *("wire.d_z=32", "wire.heads=4", "train.batch_size=8", f"--folder={folder}"),
        *("--warmup=1", "--steps=1", "--repeats=2", *LENGTHS, *more),
    ]
