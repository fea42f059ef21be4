"""What a run leaves in its folder, by the names that its status has."""

FILES = {
    "config": "config.yaml",
    "log": "pipeline.log",
    "diagnostics": "diagnostics.jsonl",
    "validation": "validation.jsonl",
    "metrics": "metrics.json",
    "predictions": "predictions.jsonl",
    "examples": "examples.jsonl",
    "report": "report.html",
    "checkpoints": "ckpt",
}
