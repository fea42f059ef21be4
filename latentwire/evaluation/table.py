"""Metrics as a table for the terminal and the log."""

from typing import Any

from latentwire.evaluation.arms import at_ratio, ratio_of


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
            if ratio_of(arm) is None:
                lines.append(
                    f"  {arm:<15}{scores['em']:>7.3f}{_interval(scores):>17}{scores['f1']:>8.3f}"
                    f"{_number(scores['nll_per_token']):>11}{scores['first_acc']:>8.3f}"
                    f"{scores['first_acc_top5']:>8.3f}"
                )
        lines.append(
            f"  normalised EM {_number(decoder['normalised_em'])}, "
            f"normalised F1 {_number(decoder['normalised_f1'])}, "
            f"compression {_number(decoder['compression_tokens'], 2)}x in tokens"
        )
        lines += _at_ratios(decoder["arms"])
        if "reconstruction" in decoder:
            arms = decoder["reconstruction"].items()
            lines.append(
                "  reconstruction, NLL a token (and tokens right): "
                + ", ".join(f"{arm} {own['nll']:.3f} ({own['accuracy']:.3f})" for arm, own in arms)
            )
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


def _at_ratios(arms: dict[str, Any]) -> list[str]:
    """The wire at further ratios, one line each; none without them."""
    ratios = list(dict.fromkeys(ratio for arm in arms if (ratio := ratio_of(arm)) is not None))
    if not ratios:
        return []
    controls = ("truncated_text", "wrong_wire", "zero_wire")
    lines = [
        f"  {'at ratio':<10}{'compression':>12}{'EM':>7}{'95 % interval':>17}{'normalised':>12}"
        f"{'NLL/token':>11}" + "".join(f"{name.replace('_', ' '):>16}" for name in controls)
    ]
    for ratio in ratios:
        latent = arms[at_ratio("latent", ratio)]
        others = "".join(f"{arms[at_ratio(name, ratio)]['em']:>16.3f}" for name in controls)
        lines.append(
            f"  {ratio:<10}{_number(latent['compression_tokens'], 2) + 'x':>12}{latent['em']:>7.3f}"
            f"{_interval(latent):>17}{_number(latent['normalised_em']):>12}"
            f"{_number(latent['nll_per_token']):>11}{others}"
        )
    return lines


def _interval(scores: dict[str, Any]) -> str:
    low, high = scores["em_ci95"]
    return f"[{low:.3f}, {high:.3f}]"


def _number(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
