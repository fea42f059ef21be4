"""Loading a tokenizer as its folder describes it."""

from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from latentwire.config import DecoderConfig, EncoderConfig

_GENERIC = {"PreTrainedTokenizerFast", "TokenizersBackend"}


def load_tokenizer(settings: EncoderConfig | DecoderConfig) -> Any:
    """The tokenizer of a model's folder or hub id.

    Where the folder declares the generic class, its ``tokenizer.json`` is the whole truth. For
    some model types ``AutoTokenizer`` puts the family's own class in its place, with another
    normalizer, and text would not come back as it was.
    """
    common = {
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
    }
    declared = get_tokenizer_config(settings.model, **common).get("tokenizer_class")
    kind = PreTrainedTokenizerFast if declared in _GENERIC else AutoTokenizer
    return kind.from_pretrained(settings.model, **common)
