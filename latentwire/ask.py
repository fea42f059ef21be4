"""``latentwire ask``: frozen decoders answer questions on a text from its wire, beside the text."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from latentwire.arguments import Parser
from latentwire.checkpoint_tool import step_of
from latentwire.checkpointing import best
from latentwire.checkpointing.commit import Step
from latentwire.checkpointing.export import export_step
from latentwire.checkpointing.state import read_place
from latentwire.config import Config, ConfigError
from latentwire.data.example import Example
from latentwire.evaluation.asking import WireReader
from latentwire.training.held_out import open_split
from latentwire.training.model_checks import decoder_problems
from latentwire.training.run_folder import log_to
from latentwire.wire.exported import CONFIG, ExportedWire, load_wire


def main(arguments: Sequence[str]) -> int:
    """Prints each decoder's answers from the text and from its wire.

    Returns:
        0 done, 2 bad input.
    """
    parser = Parser(prog="latentwire ask", description=__doc__, allow_abbrev=False)
    parser.add_argument("wire", help="an exported wire, a run's folder, or a step's own folder")
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
    parser.add_argument("--ratio", type=int, help="encoder tokens per latent at most")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="code that comes with its models may run"
    )
    parser.add_argument("--device", default="cpu", help="where all models are: cpu, cuda")
    log_to(None, rank=0)
    try:
        options = parser.parse_args(list(arguments))
        text = _read(options.file) if options.file else options.text
        trust = options.trust_remote_code
        with opened(options.wire, device=options.device, trust_remote_code=trust) as wire:
            if options.document is None:
                examples = [Example(context=text, question=q, answers=()) for q in options.question]
            else:
                examples = _document(wire.config, options.document, options.question)
                text = examples[0].context
            if not text.strip():
                raise ConfigError(["the text is empty; give one to ask about"])
            wire.check_ratio(options.ratio)
            names = options.decoder or list(wire.decoders)
            if problems := _problems(wire, names):
                raise ConfigError(problems)
            readers = [WireReader(wire, name) for name in names]
        _describe(wire, readers, text, options.ratio)
        for example in examples or _asked(text):
            _answer(readers, example, options.ratio)
    except (ConfigError, ValueError) as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        print("\n".join(f"latentwire ask: {p}" for p in problems), file=sys.stderr)
        return 2
    return 0


@contextmanager
def opened(
    name: str, *, device: str = "cpu", trust_remote_code: bool = False
) -> Iterator[ExportedWire]:
    """The wire of an export, or of a run's best step by validation, or else its latest.

    Raises:
        ConfigError: there is none.
    """
    if (Path(name) / CONFIG).is_file():
        yield load_wire(name, device=device, trust_remote_code=trust_remote_code)
        return
    with TemporaryDirectory() as folder:
        out = Path(folder) / "wire"
        export_step(_best(step_of(name), name), out)
        yield load_wire(out, device=device, trust_remote_code=trust_remote_code)


def _best(latest: Step, name: str) -> Step:
    """What Stage C would read, where a run and not a step was named."""
    standing = read_place(latest).validation
    if standing.best is None or Path(name).resolve() == latest.path.resolve():
        return latest
    return best.find(latest.path.parent.parent, standing.best) or latest


def _problems(wire: ExportedWire, names: Sequence[str]) -> list[str]:
    """What keeps decoders from being loaded."""
    if unknown := [name for name in names if name not in wire.decoders]:
        there = ", ".join(wire.decoders)
        return [f"--decoder {name}: the wire is read by {there}" for name in unknown]
    return [problem for name in names for problem in decoder_problems(wire.config, name)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"--file {path} cannot be read: {error}"]) from None


def _document(config: Config, number: int, questions: Sequence[str]) -> list[Example]:
    """Questions on one held-out document: its own, with their answers, or the given ones."""
    source = open_split(config, config.eval.split)
    count = len(source.counts())
    if not 0 <= number < count:
        raise ConfigError(
            [f"--document {number}: the {config.eval.split} split has 0 to {count - 1}"]
        )
    own = source.examples(number)
    context = own[0].context
    given = [Example(context=context, question=q, answers=()) for q in questions]
    return given or list(own)


def _asked(text: str) -> Iterator[Example]:
    """Questions as they are typed, until the input ends."""
    if sys.stdin.isatty():
        print("\nA question a line; an empty line ends.")
    for line in sys.stdin:
        if not line.strip():
            return
        yield Example(context=text, question=line.strip(), answers=())


def _describe(
    wire: ExportedWire, readers: Sequence[WireReader], text: str, ratio: int | None
) -> None:
    place = wire.description["place"]
    print(f"wire of stage {place['stage']}, step {place['step']}\n\n{text}\n")
    for reader in readers:
        sizes = reader.sizes(text, ratio=ratio)
        cut = (
            ", of its beginning: the text is longer than the encoder reads" if sizes.is_cut else ""
        )
        print(
            f"{reader.name} reads {sizes.num_tokens} tokens of text, or a wire of "
            f"{sizes.num_positions} positions{cut}"
        )


def _answer(readers: Sequence[WireReader], example: Example, ratio: int | None) -> None:
    asked, context = [example.question], [example.context]
    width = max(len(reader.name) for reader in readers)
    print(f"\n{example.question}")
    if example.answers:
        print(f"  {'right':<{width}}       {' | '.join(example.answers)}")
    for reader in readers:
        (from_text,) = reader.answer_from_text(asked, context)
        (from_wire,) = reader.answer(asked, context, ratio=ratio)
        print(f"  {reader.name:<{width}} text  {from_text}")
        print(f"  {reader.name:<{width}} wire  {from_wire}", flush=True)
