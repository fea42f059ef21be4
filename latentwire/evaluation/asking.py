"""Questions to a frozen decoder that reads a wire, or the text itself, apart from any run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from latentwire.config import ConfigError
from latentwire.data.batch import PromptBatch
from latentwire.data.example import Example
from latentwire.data.hub import names_folder
from latentwire.data.loader import decoder_batch, global_batch, text_batch
from latentwire.data.prompts import prompts_for
from latentwire.decoders.fingerprint import fingerprint
from latentwire.decoders.generation import greedy
from latentwire.decoders.identity import identity, identity_problems
from latentwire.decoders.loading import load_decoder
from latentwire.wire.exported import ExportedWire, Latents, check_texts, load_wire
from latentwire.wire.unit import Injection


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How long one text is for a decoder."""

    num_tokens: int
    """As text."""
    num_tokens_cut: int
    """Of them, those that the decoder's window has no room for."""
    num_positions: int
    """As a wire."""
    is_cut: bool
    """The text is longer than the encoder's window, and the wire is of its beginning."""
    is_wire_too_long: bool
    """The decoder's window has no room for the wire."""


class WireReader:
    """One frozen decoder beside a wire that it can read.

    The decoder is in the run's precision, the wire in fp32: under bf16 an answer can differ from
    what the run's own evaluation gave.

    Args:
        wire: as ``load_wire`` opens it; the decoder is loaded on its device.
        decoder: one of ``wire.decoders``.
        model: folder or hub id of that decoder, where it is not what the wire's configuration says.

    Raises:
        ValueError: the wire was not trained for that decoder.
        ConfigError: the model cannot be loaded, needs code of its own that is not trusted, or is
            not the one that the wire was trained with.
    """

    def __init__(self, wire: ExportedWire, decoder: str, *, model: str | None = None) -> None:
        if decoder not in wire.decoders:
            raise ValueError(f"no decoder '{decoder}'; there are {', '.join(wire.decoders)}")
        self.wire, self.name = wire, decoder
        config = wire.config
        settings = config.decoders[decoder]
        if model is not None:
            settings = replace(settings, model=model, revision=None)
        # Both are for training, and ask for more of a machine than reading does.
        settings = replace(settings, compile=False, gradient_checkpointing=False)
        if names_folder(settings.model) and not Path(settings.model).expanduser().is_dir():
            problem = (
                f"decoders.{decoder}.model: there is no folder '{settings.model}' here; give the "
                "model's folder or hub id (model=, or --model)"
            )
            raise ConfigError([problem])
        try:
            self._decoder = load_decoder(
                decoder,
                settings,
                dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
                device=next(wire.parameters()).device,
            )
        except ConfigError:
            raise
        except (OSError, ValueError, ImportError) as error:
            why = str(error).splitlines()[0]
            problem = f"decoders.{decoder}.model: '{settings.model}' cannot be loaded: {why}"
            raise ConfigError([problem]) from None
        now = identity(self._decoder, settings, fingerprint(self._decoder.model))
        known = wire.description["decoders"]
        remedy = "give the model it was trained with"
        if problems := identity_problems(known, {decoder: now}, where="the wire", remedy=remedy):
            raise ConfigError(problems)
        config = replace(config, decoders={**config.decoders, decoder: settings})
        self._prompts = prompts_for(
            config, decoder, self._decoder.tokenizer, window=self._decoder.window
        )

    def sizes(self, context: str, question: str = "", *, ratio: int | None = None) -> Sizes:
        """How long a text is as text and as a wire.

        Args:
            question: takes room in the decoder's window, and is part of the wire where that
                carries the whole prompt.
        """
        (example,) = _examples([question], [context])
        slot, tokenizer = self._prompts.slot_text(example), self.wire.tokenizer
        positions = tokenizer.num_positions(slot, ratio)
        return Sizes(
            num_tokens=self._prompts.num_context_tokens(context),
            num_tokens_cut=self._prompts.text(example).slot_tokens_cut,
            num_positions=positions,
            is_cut=hash(slot) in tokenizer.cut_texts,
            is_wire_too_long=positions > self._prompts.room(self._prompts.wire(example)),
        )

    @torch.no_grad()
    def answer(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        *,
        ratio: int | None = None,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """Answers each question from the wire of its context. A text is encoded once.

        Args:
            ratio: encoder tokens per latent at most; None is the configuration's own.
            max_new_tokens: None is the configuration's own (``eval.max_new_tokens``).

        Raises:
            ValueError: not one context for each question, one string for a list of them, no token
                to write, or a ratio that this wire cannot have.
        """
        examples = _examples(questions, contexts)
        if not questions:
            return []
        batch = global_batch(examples, self._prompts, ratio=ratio)
        latents = self.wire.encode(batch.texts, ratio=ratio)
        own = decoder_batch(
            batch, self._prompts, self.wire.tokenizer, part=0, num_parts=1, answers=False
        )
        # The part reads all wires, in the order of its questions.
        rows = torch.tensor(own.texts, device=latents.vectors.device)
        latents = Latents(vectors=latents.vectors[rows], counts=latents.counts[rows])
        injection = self.wire.inject(self.name, latents)
        return self._written(own.latents_prompt, injection, max_new_tokens)

    @torch.no_grad()
    def answer_from_text(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """Answers each question with its context read as text; as ``answer``."""
        prompts = [self._prompts.text(each) for each in _examples(questions, contexts)]
        if not prompts:
            return []
        batch = text_batch(prompts, pad=self._prompts.pad, answers=False)
        return self._written(batch, None, max_new_tokens)

    def _written(
        self, batch: PromptBatch, injection: Injection | None, max_new_tokens: int | None
    ) -> list[str]:
        limit = self.wire.config.eval.max_new_tokens if max_new_tokens is None else max_new_tokens
        if limit < 1:
            raise ValueError(f"max_new_tokens {limit}: an answer has 1 token or more")
        found = greedy(
            self._decoder,
            batch.to(self._decoder.device),
            ends=self._prompts.ends,
            max_new_tokens=limit,
            wire=injection,
        )
        return [self._prompts.decode(ids) for ids in found.tolist()]


def load_reader(
    path: str | Path,
    decoder: str,
    *,
    model: str | None = None,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> WireReader:
    """Opens an exported wire and one of the frozen decoders that read it.

    Arguments and errors are those of ``load_wire`` and ``WireReader``.
    """
    wire = load_wire(path, device=device, trust_remote_code=trust_remote_code, revision=revision)
    return WireReader(wire, decoder, model=model)


def _examples(questions: Sequence[str], contexts: Sequence[str]) -> list[Example]:
    check_texts(questions, "questions")
    check_texts(contexts, "contexts")
    if len(questions) != len(contexts):
        raise ValueError(f"{len(questions)} questions, but {len(contexts)} contexts; give one each")
    pairs = zip(questions, contexts, strict=True)
    return [Example(context=text, question=asked, answers=("",)) for asked, text in pairs]
