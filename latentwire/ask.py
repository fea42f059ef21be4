"""``latentwire ask``: frozen decoders answer questions on a text from its wire, beside the text."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from latentwire.arguments import Parser
from latentwire.checkpoint_tool import evaluated_step
from latentwire.checkpointing.export import export_step
from latentwire.config import Config, ConfigError
from latentwire.data.example import Example
from latentwire.evaluation.asking import WireReader
from latentwire.strict_json import printable
from latentwire.training.held_out import open_split
from latentwire.training.model_checks import decoder_problems, first_line
from latentwire.training.run_folder import log_to
from latentwire.wire.export_files import CONFIG, own_code, read_config
from latentwire.wire.exported import ExportedWire, load_wire


def main(arguments: Sequence[str]) -> int:
    """Prints each decoder's answers from the text and from its wire.

    Returns:
        0 done, 1 files cannot be read or written, 2 bad input.
    """
    log_to(None, rank=0)
    try:
        options = _parser().parse_args(list(arguments))
        if problems := _words_problems(options):
            raise ConfigError(problems)
        models = _models(options.model)
        device = _device(options.device)
        text = _read(options.file) if options.file else options.text
        trust = options.trust_remote_code
        with opened(options.wire, device=device, trust_remote_code=trust) as wire:
            wire.check_ratio(options.ratio)
            names = list(dict.fromkeys(options.decoder)) or list(wire.decoders)
            if problems := _problems(wire, names, models):
                raise ConfigError(problems)
            if options.document is None:
                examples = [Example(context=text, question=q, answers=()) for q in options.question]
            else:
                examples = _document(wire.config, options.document, options.question)
                text = examples[0].context
            if not text.strip():
                raise ConfigError(["the text is empty; give one to ask about"])
            readers = [WireReader(wire, name, model=models.get(name)) for name in names]
        _describe(wire, readers, text, options.ratio)
        for asked in [examples] if examples else ([example] for example in _asked(text)):
            _answer(readers, asked, options.ratio)
    except KeyboardInterrupt:
        pass  # the usual way to leave
    except (ConfigError, ValueError) as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        print("\n".join(f"latentwire ask: {p}" for p in problems), file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"latentwire ask: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="latentwire ask", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "wire",
        help="an exported wire, a run's folder (the step that its Stage C reads), or a step's own",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="the text to ask about")
    source.add_argument("--file", type=Path, help="a file that holds it, in UTF-8")
    source.add_argument(
        "--document",
        type=int,
        metavar="N",
        help="a document of the evaluated split, by its number from 0, with its own questions",
    )
    parser.add_argument(
        "--question", action="append", default=[], help="once or more; else lines of the input"
    )
    parser.add_argument("--decoder", action="append", default=[], help="once or more; else all")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="DECODER=MODEL",
        help="where a decoder's model is now: a folder or a hub id",
    )
    parser.add_argument("--ratio", type=int, help="encoder tokens per latent at most")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="code that comes with its models may run"
    )
    parser.add_argument("--device", default="cpu", help="where all models are: cpu, cuda")
    return parser


@contextmanager
def opened(
    name: str, *, device: torch.device, trust_remote_code: bool = False
) -> Iterator[ExportedWire]:
    """The wire of an export, or of the step that a run's Stage C reads.

    Raises:
        ConfigError: there is none, or it needs code that is not trusted.
    """
    with TemporaryDirectory() as folder:
        out = Path(name)
        if not (out / CONFIG).is_file():
            out = Path(folder) / "wire"
            export_step(evaluated_step(name), out)
        config = read_config(out)
        if config.encoder.trust_remote_code and not trust_remote_code:
            raise ConfigError([own_code(config, name, flag="--trust-remote-code")])
        yield load_wire(out, device=device, trust_remote_code=trust_remote_code)


def _models(given: Sequence[str]) -> dict[str, str]:
    """Models by decoder."""
    pairs = [text.partition("=") for text in given]
    if wrong := [text for text, (_, _, model) in zip(given, pairs, strict=True) if not model]:
        raise ConfigError([f"--model {text}: give DECODER=MODEL" for text in wrong])
    return {name: model for name, _, model in pairs}


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    # A torch without CUDA raises AssertionError, one without a device's kernels the third.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError([f"--device {text}: {first_line(error)}"]) from None
    if device.type == "meta":
        raise ConfigError([f"--device {text}: has no numbers, so nothing is answered; use cpu"])
    return device


def _words_problems(options: argparse.Namespace) -> list[str]:
    """Bytes that are no UTF-8 come as half letters, which no tokenizer reads."""
    given = [("--text", options.text or ""), *(("--question", q) for q in options.question)]
    return [f"{option}: holds bytes that are no UTF-8" for option, text in given if _is_torn(text)]


def _is_torn(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _problems(wire: ExportedWire, names: Sequence[str], models: Mapping[str, str]) -> list[str]:
    """What keeps decoders from being loaded."""
    there = ", ".join(wire.decoders)
    options = [("--decoder", name) for name in names] + [("--model", name) for name in models]
    if unknown := [pair for pair in options if pair[1] not in wire.decoders]:
        return [f"{option} {name}: the wire is read by {there}" for option, name in unknown]
    decoders = {
        name: replace(decoder, model=models[name], revision=None) if name in models else decoder
        for name, decoder in wire.config.decoders.items()
    }
    config = replace(wire.config, decoders=decoders)
    found = [problem for name in names for problem in decoder_problems(config, name)]
    return [*found, *(["--model DECODER=MODEL says where a model is now"] if found else [])]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"--file {path} cannot be read: {error}"]) from None


def _document(config: Config, number: int, questions: Sequence[str]) -> list[Example]:
    """Questions on one held-out document: its own, with their answers, or the given ones."""
    source = open_split(config, config.eval.split)
    if not 0 <= number < source.num_documents:
        last = source.num_documents - 1
        raise ConfigError([f"--document {number}: the {config.eval.split} split has 0 to {last}"])
    own = source.examples(number)
    given = [Example(context=own[0].context, question=q, answers=()) for q in questions]
    return given or list(own)


def _asked(text: str) -> Iterator[Example]:
    """Questions as they are typed, until the input ends."""
    if sys.stdin.isatty():
        print("\nA question a line; an empty line ends.")
    for line in sys.stdin:
        if not line.strip():
            return
        if _is_torn(line):
            raise ConfigError(["the question holds bytes that are no UTF-8"])
        yield Example(context=text, question=line.strip(), answers=())


def _describe(
    wire: ExportedWire, readers: Sequence[WireReader], text: str, ratio: int | None
) -> None:
    place = wire.description["place"]
    print(f"wire of stage {place['stage']}, step {place['step']}\n\n{text}\n")
    for reader in readers:
        sizes = reader.sizes(text, ratio=ratio)
        print(
            f"{reader.name} reads {sizes.num_tokens - sizes.num_tokens_cut} tokens of text, or a "
            f"wire of {sizes.num_positions} positions"
        )
        if sizes.num_tokens_cut:
            print(f"  its window has no room for the text's last {sizes.num_tokens_cut} tokens")
        if sizes.is_cut:
            print("  the wire is of the text's beginning: the encoder's window ends there")
        if sizes.is_wire_too_long:
            print("  its window has no room for the wire: use a larger --ratio")


def _answer(readers: Sequence[WireReader], examples: Sequence[Example], ratio: int | None) -> None:
    questions = [example.question for example in examples]
    contexts = [example.context for example in examples]
    answers = [
        (
            reader.name,
            # A decoder may write what a terminal obeys.
            printable(reader.answer_from_text(questions, contexts)),
            printable(reader.answer(questions, contexts, ratio=ratio)),
        )
        for reader in readers
    ]
    width = max(len(reader.name) for reader in readers)
    for place, example in enumerate(examples):
        print(f"\n{example.question}")
        if example.answers:
            print(f"  {'right':<{width}}       {' | '.join(example.answers)}")
        for name, from_text, from_wire in answers:
            print(f"  {name:<{width}} text  {from_text[place]}")
            print(f"  {name:<{width}} wire  {from_wire[place]}", flush=True)
