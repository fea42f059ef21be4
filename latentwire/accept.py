"""Whether a finished run is good enough to build on: ``latentwire accept runs/<tag>``.

Every check is of one decoder, has a threshold, and reads what the run itself left: its metrics,
its predictions, its status and its diagnostics.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from latentwire import strict_yaml
from latentwire.arguments import Parser
from latentwire.config import Config, ConfigError
from latentwire.config_file import from_tree
from latentwire.diagnostics.reading import rows as diagnostics_rows
from latentwire.evaluation.metrics import bootstrap_ci95, exact_match
from latentwire.files import publish
from latentwire.strict_json import parsed, read_object
from latentwire.training.status import FILES, read_status

FILE = "accept.json"
_ARMS = ("text", "latent", "wrong_wire")
_FOREIGN = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What files of another shape than a run's come to."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a run must reach."""

    min_first_ratio: float = 0.9
    """First-token accuracy of the wire over that of the text."""
    min_em_ratio: float = 0.9
    """Exact match of the wire over that of the text."""
    min_gap: float = 0.2
    """Exact match of the wire minus that of another document's wire."""
    min_examples: int = 100
    """Evaluated examples."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check and how it went."""

    decoder: str
    name: str
    value: float | str | None
    """None where there is nothing to measure."""
    threshold: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run left, read."""

    config: Config
    metrics: dict[str, Any]
    state: str
    gaps: dict[str, tuple[float, tuple[float, float]]]
    """By decoder: EM of the wire minus EM of the wrong wire, and its 95 % interval."""
    gradients: dict[str, dict[str, float | None]]
    """By decoder and objective: the smallest norm of any rank where it was last measured."""


def read_run(folder: Path) -> RunFiles:
    """Reads a run's folder.

    Raises:
        ConfigError: a file is missing or cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError([f"{folder}: no such run; give a run's folder, e.g. runs/smoke"])
    try:
        config = from_tree(strict_yaml.load_file(folder / FILES["config"]))
        metrics = read_object(folder / FILES["metrics"])
        for decoder in metrics["decoders"].values():
            for arm in _ARMS:
                _ = decoder["arms"][arm]["em"], decoder["arms"][arm]["first_acc"]
        predictions = _json_lines(folder / FILES["predictions"])
        rows = list(diagnostics_rows(folder, kind="step"))
        gaps = {name: _gap(predictions, name, config.run.seed) for name in metrics["decoders"]}
        tag = config.run.tag
        gradients = {name: last_gradients(rows, name, tag) for name in metrics["decoders"]}
    except OSError as error:
        raise ConfigError(
            [f"{error.filename}: {error.strerror}; accept needs a run that Stage C has evaluated"]
        ) from None
    except (*_FOREIGN, yaml.YAMLError) as error:
        raise _not_whole(folder, error) from None
    return RunFiles(
        config=config,
        metrics=metrics,
        state=str(read_status(folder).get("state", "unknown")),
        gaps=gaps,
        gradients=gradients,
    )


def _not_whole(folder: Path, error: Exception) -> ConfigError:
    what = f"{type(error).__name__}: {error}"
    return ConfigError([f"{folder}: its files are not those of a whole run ({what})"])


def _json_lines(path: Path) -> list[dict[str, Any]]:
    # Not ``splitlines``, which parts a text of the user's at further characters.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [parsed(line) for line in lines if line.strip()]


def _gap(
    predictions: Sequence[Mapping[str, Any]], decoder: str, seed: int
) -> tuple[float, tuple[float, float]]:
    """Mean difference of exact match, latent minus wrong wire, paired by example.

    The interval resamples documents, as those of the scores themselves do.
    """
    scores: dict[int, dict[str, float]] = {}
    documents: dict[int, int] = {}
    for row in predictions:
        if row["decoder"] == decoder and row["arm"] in ("latent", "wrong_wire"):
            em = exact_match(row["prediction"], row["answers"])
            scores.setdefault(row["example"], {})[row["arm"]] = em
            documents[row["example"]] = row["document"]
    order = sorted(scores)
    differences = [scores[example]["latent"] - scores[example]["wrong_wire"] for example in order]
    interval = bootstrap_ci95(
        differences, documents=[documents[example] for example in order], seed=seed
    )
    return sum(differences) / len(differences), interval


def last_gradients(
    rows: Sequence[Mapping[str, Any]], decoder: str, run: str
) -> dict[str, float | None]:
    """Each objective's gradient norm where it was last measured, the smallest over the ranks."""
    at: dict[str, tuple[str, int]] = {}
    found: dict[str, float | None] = {}
    for row in rows:
        if row.get("decoder") != decoder or row.get("run", run) != run or row.get("skipped"):
            continue
        place = (row["stage"], row["step"])
        for key, norm in row.items():
            name = key.removeprefix("grad_")
            if name == key or name.startswith("norm") or "/" in name:
                continue
            before = found[name] if at.get(name) == place else float("inf")
            found[name] = None if norm is None or before is None else min(before, norm)
            at[name] = place
    return found


def judge(run: RunFiles, limits: Thresholds) -> list[Check]:
    """Every check of a run."""
    num_examples = run.metrics["num_examples"]
    checks = [
        Check(
            decoder="",
            name="state",
            value=run.state,
            threshold="finished",
            passed=run.state == "finished",
        ),
        _at_least("", "num_examples", num_examples, limits.min_examples),
    ]
    for name, decoder in run.metrics["decoders"].items():
        text, latent = decoder["arms"]["text"], decoder["arms"]["latent"]
        gap, (low, _) = run.gaps[name]
        checks += [
            _at_least(
                name,
                "first_acc, latent / text",
                _ratio(latent["first_acc"], text["first_acc"]),
                limits.min_first_ratio,
            ),
            _at_least(
                name, "EM, latent / text", _ratio(latent["em"], text["em"]), limits.min_em_ratio
            ),
            _at_least(name, "EM, latent - wrong_wire", gap, limits.min_gap),
            _above_zero(name, "its 95 % interval's low end", low),
        ]
        norms = run.gradients.get(name, {})
        checks += [
            _above_zero(name, f"grad_{objective}", norms.get(objective))
            for objective in measured_objectives(run.config)
        ]
    return checks


def measured_objectives(config: Config) -> list[str]:
    """Trained objectives whose gradient where the wire is read the diagnostics should hold.

    Continuation is there in mixed steps only, which a measured step need not be.
    """
    only = config.diagnostics.grad_diag_components
    return [
        name
        for name, weight in config.objectives.weights.items()
        if weight > 0
        and name != "continuation"
        and (name != "gist" or config.gist.use_gist_head)
        and (not only or name in only)
    ]


def _ratio(value: float, reference: float) -> float | None:
    return value / reference if reference > 0 else None


def _at_least(decoder: str, name: str, value: float | None, limit: float) -> Check:
    return Check(
        decoder=decoder,
        name=name,
        value=value,
        threshold=f">= {limit:g}",
        passed=value is not None and value >= limit,
    )


def _above_zero(decoder: str, name: str, value: float | None) -> Check:
    return Check(
        decoder=decoder,
        name=name,
        value=value,
        threshold="> 0",
        passed=value is not None and value > 0,
    )


def check_table(checks: Sequence[Check]) -> str:
    """One line a check."""
    lines = [f"{'decoder':<12}{'check':<30}{'value':>11}  {'threshold':<12}"]
    for check in checks:
        value = check.value
        shown = "none" if value is None else value if isinstance(value, str) else f"{value:.4g}"
        verdict = "pass" if check.passed else "FAIL"
        lines.append(
            f"{check.decoder or '-':<12}{check.name:<30}{shown:>11}  {check.threshold:<12}{verdict}"
        )
    return "\n".join(lines)


def was_accepted(folder: Path) -> bool:
    """Whether a run was accepted with the checkpoint that its metrics are of."""
    try:
        accepted = json.loads((folder / FILE).read_text(encoding="utf-8"))
        metrics = json.loads((folder / FILES["metrics"]).read_text(encoding="utf-8"))
        return accepted["accepted"] is True and accepted["checkpoint"] == metrics["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def main(arguments: Sequence[str]) -> int:
    """Checks a run, prints every check and writes ``accept.json``.

    Returns:
        0 accepted, 1 not accepted, 2 bad input.
    """
    parser = Parser(prog="latentwire accept", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a run's folder, e.g. runs/smoke")
    for name, default in asdict(Thresholds()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            metavar="N",
            help=f"default {default}",
        )
    try:
        options = vars(parser.parse_args(list(arguments)))
        folder: Path = options.pop("run")
        limits = Thresholds(**options)
        run = read_run(folder)
        try:
            checks = judge(run, limits)
        except _FOREIGN as error:
            raise _not_whole(folder, error) from None
        accepted = all(check.passed for check in checks)
        _write(folder / FILE, run, limits, checks, accepted=accepted)
    except ConfigError as error:
        print("\n".join(["latentwire accept:", *error.problems]), file=sys.stderr)
        return 2
    print(check_table(checks))
    failed = [f"{check.decoder} {check.name}".strip() for check in checks if not check.passed]
    verdict = "accepted" if accepted else f"not accepted: {'; '.join(failed)}"
    print(f"{folder}: {verdict}")
    return 0 if accepted else 1


def _write(
    path: Path, run: RunFiles, limits: Thresholds, checks: Sequence[Check], *, accepted: bool
) -> None:
    result = {
        "accepted": accepted,
        "checkpoint": run.metrics.get("checkpoint"),
        "thresholds": asdict(limits),
        "checks": [asdict(check) for check in checks],
    }
    try:
        publish(path, (json.dumps(result, indent=2) + "\n").encode(), durably=False)
    except OSError as error:
        raise ConfigError([f"{path} cannot be written: {error.strerror}"]) from None
