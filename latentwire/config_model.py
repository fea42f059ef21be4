"""What a wire is made of: the sections on models, encoder, adapters and decoders."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    rank: int = 0
    """Rank of the LoRA update. 0: of the encoder all weights are trained, of a decoder none."""
    alpha: float = 32.0
    """Scale of the update, divided by the rank."""
    targets: str = "all-linear"
    """Ends of module names, comma separated, or ``all-linear``: every linear layer of the
    transformer."""


@dataclass(frozen=True, kw_only=True)
class ByteConfig:
    width: int = 192
    """Hidden size of the ``byte`` encoder, trained from scratch on UTF-8 bytes."""
    layers: int = 3
    """Its transformer layers."""
    heads: int = 6
    """Its attention heads; they divide its width."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    kind: Literal["lm", "stq", "byte"] = "lm"
    """``lm``: a trained copy of a language model. ``stq``: the states of a frozen one, read by
    trained layers only. ``byte``: a transformer over UTF-8 bytes, from scratch."""
    model: str = ""
    """Folder or hub id of the causal LM that ``lm`` trains a copy of, or that ``stq`` reads."""
    layers: tuple[int, ...] = ()
    """Layers whose states ``stq`` reads: 0 the input embeddings, n after the n-th; none given
    reads all of them."""
    byte: ByteConfig = field(default_factory=ByteConfig)
    revision: str | None = None
    """Hub revision."""
    attention: Literal["bidirectional", "causal"] = "bidirectional"
    """Who sees whom among the context's tokens; a frozen model (``stq``) always looks back only."""
    max_tokens: int = 0
    """Longest text in encoder tokens (bytes for ``byte``); 0 is the model's own window, or 4,096
    bytes. The rest is cut and counted."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    activation_checkpointing: bool = False
    """Recompute the encoder's layers in backward instead of keeping their activations."""
    trust_remote_code: bool = False
    """Allow the model's repository to run its own code."""


@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    layers: int = 0
    """Transformer layers over a wire's latents, before any decoder sees them; 0 has none."""
    heads: int = 4
    """Their attention heads; they divide ``wire.d_z``."""


@dataclass(frozen=True, kw_only=True)
class WireConfig:
    pooling: Literal["mean", "block", "queries"] = "mean"
    """How token states become latents. ``mean``: means of contiguous spans. ``block``: a learned
    query attends within each span. ``queries``: ``num_latents`` learned queries attend to the
    whole text, each starting out near its own part of it."""
    ratio: int = 4
    """Encoder tokens per latent at most, in equal spans; the wire's length follows the text."""
    num_latents: int = 0
    """A fixed number of latents per text instead of a ratio; 0 uses the ratio."""
    heads: int = 4
    """Attention heads of ``block`` and ``queries`` pooling; they divide ``d_z``."""
    latent_private_len: int = 0
    """Further latents of each decoder that no other decoder reads."""
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    d_z: int = 128
    """Width of a latent."""
    carries: Literal["context", "prompt"] = "context"
    """What the wire replaces: the context (the question stays text) or the whole prompt."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    hidden_mult: float = 2.0
    """Width of the adapter's hidden layer, as a multiple of the decoder's hidden size."""
    init_scale: float = 1.0
    """First size of a soft-prompt vector over the RMS of the decoder's input embeddings; trained
    from there. States after a layer are many times larger than embeddings."""
    dropout: float = 0.0
    """Dropout of the adapter's hidden layer."""
    use_frame: bool = True
    """Learned begin and end vectors stand around the wire, and are counted as its positions."""
    use_soft_prompt: bool = True
    """The decoder reads the latents as vectors among its input embeddings."""
    use_deep_prefix: bool = False
    """The decoder reads the latents in the keys and values of every layer."""
    deep_prefix_len: int = 0
    """Positions of the deep prefix, each reading all latents; 0 has one position per latent,
    which it shares with the soft prompt where there is one."""
    deep_prefix_dropout: float = 0.0
    """Dropout in front of the deep prefix's keys and values."""


@dataclass(frozen=True, kw_only=True)
class GistConfig:
    use_gist_head: bool = True
    """Each decoder's unit has a head that names the context's first tokens from the latents;
    ``objectives.gist`` is its weight. It is not used to answer."""
    gist_len: int = 48
    """How many tokens it names."""
    hidden: int = 256
    """Width of the head."""
    heads: int = 4
    """Its attention heads; they divide its width."""
    layers: int = 1
    """Its transformer layers."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    model: str = ""
    """Folder or hub id of the frozen causal LM."""
    revision: str | None = None
    """Hub revision."""
    ranks: int | None = None
    """How many ranks hold this decoder; None shares out what is left."""
    share: float = 1.0
    """Its part of the ranks beside the other decoders that name no ``ranks``."""
    weight: float = 1.0
    """Weight of this decoder's loss."""
    chat: bool | None = None
    """Wrap prompts in the tokenizer's chat template; null does where it has one."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Whether a prompt opens with BOS; ``auto`` does what the tokenizer does."""
    precision: Literal["fp32", "bf16"] | None = None
    """Of the frozen weights; null is the run's own."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """``nf4`` loads the frozen weights in 4 bits, ``int8`` in 8 (they need bitsandbytes)."""
    gradient_checkpointing: bool = False
    """Recompute the decoder's layers in backward instead of keeping their activations."""
    compile: bool = False
    """Compile the decoder's layers (``torch.compile``): the first steps take minutes, the others
    less. Not with ``quantization``, ``shard`` or ``lora``."""
    shard: int = 1
    """Ranks of the group that hold one copy of the weights together, by FSDP2; a group of more
    ranks holds several copies. 1: every rank holds all of them."""
    reshard: bool = True
    """With ``shard``: let go of a layer's whole weights after its forward, and gather them again in
    backward. false keeps them until then: faster, but for a time every rank has them all."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    trust_remote_code: bool = False
    """Allow the model's repository to run its own code."""
