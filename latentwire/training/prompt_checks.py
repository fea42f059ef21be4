"""Whether a decoder's tokenizer can do what the prompt settings ask for, tried on real answers."""

from collections.abc import Sequence

from transformers import AutoConfig

from latentwire.config import Config, ConfigError
from latentwire.data.example import Example
from latentwire.data.prompts import prompts_for
from latentwire.data.tokenizers import load_tokenizer
from latentwire.decoders.cache import context_window
from latentwire.training.held_out import open_split

_NUM_DOCUMENTS = 128


def sample_documents(config: Config) -> list[tuple[Example, ...]]:
    """The examples of documents evenly spaced over the training split.

    The data have to have passed ``check_source``.
    """
    source = open_split(config, "train")
    step = -(-source.num_documents // _NUM_DOCUMENTS)
    return [source.examples(number) for number in range(0, source.num_documents, step)]


def sample_examples(config: Config) -> list[Example]:
    """Examples of ``sample_documents``, each answer once."""
    by_answer: dict[str, Example] = {}
    for examples in sample_documents(config):
        for example in examples:
            by_answer.setdefault(example.answers[0], example)
    return list(by_answer.values())


def prompt_problems(config: Config, name: str, examples: Sequence[Example]) -> list[str]:
    """What is wrong with the prompts of the decoder ``name``, whose model has been checked.

    Args:
        examples: as ``sample_examples`` draws them; none where the data are wrong themselves.
    """
    settings = config.decoders[name]
    tokenizer = load_tokenizer(settings)
    model = AutoConfig.from_pretrained(
        settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code
    )
    try:
        prompts = prompts_for(config, name, tokenizer, window=context_window(model))
    except ConfigError as error:
        return error.problems
    taken = []
    for example in examples:
        taken.append(prompts.taken(prompts.wire(example)))
        if prompts.merged_answers:
            anchor, answer = config.data.anchor, example.answers[0]
            return [
                f"data.anchor: {anchor!r} and the answer {answer!r} are no separate tokens for "
                f"decoders.{name}: its tokenizer merges the anchor's end with what follows; end "
                "the anchor in another character"
            ]
    if taken and min(taken) >= prompts.window:
        return [
            f"decoders.{name}.model: its window of {prompts.window} tokens has no room for any "
            f"context: the shortest of {len(taken)} training prompts takes {min(taken)} tokens "
            "without one; use less of eval.max_new_tokens and data.max_answer_tokens, which are "
            "kept free, a shorter data.template, or a model with a longer window"
        ]
    return []
