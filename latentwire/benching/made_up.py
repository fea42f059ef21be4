"""Made-up models and texts: random weights of real shapes, and texts of exact lengths.

What a step costs depends on shapes and lengths, not on what the weights have learned. The models
are folders as any other, so that loading, quantising and sharding them is what it always is.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

_SPECIAL = ("<s>", "</s>", "<unk>")
_MOST_WORDS = 4000
_WORD = "w{}"


def write_model(
    folder: Path, entry: Mapping[str, Any], *, seed: int, dtype: torch.dtype, device: torch.device
) -> None:
    """A causal LM with random weights, and a tokenizer of one token a word.

    Args:
        entry: the keys of its config.json, ``model_type`` among them.
        dtype: of the weights in the file.
        device: where they are drawn, for the time it takes.
    """
    known = {key: value for key, value in entry.items() if key != "model_type"}
    own = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    config = AutoConfig.for_model(entry["model_type"], **known | own)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]  # a file holds shared weights once, under the input's name
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer(entry["vocab_size"]).save_pretrained(folder)


def num_words(vocab_size: int) -> int:
    """How many words a tokenizer of so many tokens has at most."""
    return min(vocab_size - len(_SPECIAL), _MOST_WORDS)


def tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One token for each word ``w0``, ``w1``, ...; everything else is unknown. It opens with BOS
    by itself, as most do not: prompts ask for one by ``bos``."""
    words = [*_SPECIAL, *(_WORD.format(number) for number in range(num_words(vocab_size)))]
    model = WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    made = Tokenizer(model)
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def write_texts(
    path: Path,
    *,
    contexts: int,
    context_tokens: int,
    questions: int,
    question_tokens: int,
    answer_tokens: int,
    words: int,
    seed: int,
) -> None:
    """A file for ``data.source: jsonl``: every text is exactly so many words long.

    Args:
        words: how many different words there are, by the smallest vocabulary.
    """
    rng = random.Random(seed)

    def text(length: int) -> str:
        return " ".join(_WORD.format(rng.randrange(words)) for _ in range(length))

    with path.open("w", encoding="utf-8") as file:
        for number in range(contexts):
            context = text(context_tokens)
            for _ in range(questions):
                row = {
                    "title": str(number),
                    "context": context,
                    "question": text(question_tokens),
                    "answers": [text(answer_tokens)],
                }
                file.write(json.dumps(row) + "\n")
