"""Metrics as a table for the terminal and the log."""

from typing import Any


def result_table(metrics: dict[str, Any]) -> str:
    """One line an arm, one block a decoder, and the compression under each."""
    lines = []
    for name, decoder in metrics["decoders"].items():
        lines.append(f"{name}")
        lines.append(
            f"  {'arm':<15}{'EM':>7}{'95 % interval':>17}{'F1':>8}{'NLL/token':>11}"
            f"{'first':>8}{'top 5':>8}"
        )
        for arm, scores in decoder["arms"].items():
            low, high = scores["em_ci95"]
            interval = f"[{low:.3f}, {high:.3f}]"
            nll = scores["nll_per_token"]
            lines.append(
                f"  {arm:<15}{scores['em']:>7.3f}{interval:>17}{scores['f1']:>8.3f}"
                f"{_number(nll):>11}{scores['first_acc']:>8.3f}{scores['first_acc_top5']:>8.3f}"
            )
        lines.append(
            f"  normalised EM {_number(decoder['normalised_em'])}, "
            f"normalised F1 {_number(decoder['normalised_f1'])}, "
            f"compression {_number(decoder['compression_tokens'], 2)}x in tokens"
        )
        lines += [
            f"  {arm}: compression {_number(scores['compression_tokens'], 2)}x in tokens"
            for arm, scores in decoder["arms"].items()
            if arm.startswith("latent@")
        ]
        if "gist" in decoder:
            gist = decoder["gist"]
            lines.append(
                f"  gist NLL {gist['nll']:.3f} a token, {gist['accuracy']:.3f} right; by frequency "
                f"alone {gist['unigram_nll']:.3f}, by the mean embedding "
                f"{gist['mean_embedding_nll']:.3f}"
            )
    lines.append(
        f"{metrics['num_examples']} examples; wire {_number(metrics['wire_bytes'], 0)} bytes at "
        f"bf16, text {_number(metrics['text_bytes'], 0)} bytes"
    )
    return "\n".join(lines)


def _number(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
