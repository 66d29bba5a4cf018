"""Small models with random weights, of every supported family: for tests, smoke runs and training from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from registries import MODELS
from registries.counts import Count, number_of
from registries.models.content import folder_sha256
from registries.models.sizes import of_size, parameter_count, smallest
from registries.registry import UserError, is_there

Family = Literal["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]

NUM_BYTES = 256
MAX_DIMENSION = 2**24  # larger dimensions are mistakes that would fill the memory


def dimension_errors(
    family: Family,
    hidden_size: int,
    num_heads: int,
    num_kv_heads: int | None,
    vocab_size: int,
    tokenizer: str | None,
) -> list[str]:
    """Messages about dimensions that do not fit together."""
    errors = []
    if hidden_size % num_heads:
        divisors = [n for n in range(1, 65) if hidden_size % n == 0]
        errors.append(
            f"model.num_heads={num_heads} does not divide model.hidden_size={hidden_size}. Allowed: {divisors}"
        )
    elif (hidden_size // num_heads) % 4:
        errors.append(f"model.hidden_size / num_heads = {hidden_size // num_heads} must be a multiple of 4")
    if family in ("gpt2", "gpt_neox") and num_kv_heads not in (None, num_heads):
        errors.append(f"model.num_kv_heads={num_kv_heads}: {family} cannot group heads. Allowed: null, {num_heads}")
    elif num_kv_heads is not None and num_heads % num_kv_heads:
        errors.append(f"model.num_kv_heads={num_kv_heads} does not divide model.num_heads={num_heads}")
    if tokenizer is None and vocab_size < NUM_BYTES + 1:
        errors.append(f"model.vocab_size={vocab_size} is too small for the byte tokenizer. Allowed: 257 or more")
    if tokenizer is not None and not is_there(tokenizer, folder=True):
        errors.append(f"model.tokenizer={tokenizer}: there is no such folder")
    return errors


@MODELS.register("random", check=dimension_errors)
class RandomModel:
    """A model with random weights and, unless a tokenizer folder is given, a tokenizer whose tokens are bytes.

    Args:
        family: model family.
        num_layers, hidden_size, num_heads, vocab_size: dimensions; the MLP is four times as wide as the model.
        num_kv_heads: key/value heads, for families that group them (default: as many as heads).
        max_positions: longest sequence.
        tokenizer: folder of a tokenizer; its tokens must fit in vocab_size.
        parameters: how many the model is to have, such as 2.74M, which solves the two widths; None: they stay.
        num_tokens: of a tokenizer that is trained for it, in the place of `vocab_size`; None: there is none.
    """

    def __init__(
        self,
        family: Family = "llama",
        num_layers: Annotated[int, Ge(1), Le(10_000)] = 2,
        hidden_size: Annotated[int, Ge(4), Le(MAX_DIMENSION)] = 64,
        num_heads: Annotated[int, Ge(1), Le(MAX_DIMENSION)] = 4,
        num_kv_heads: Annotated[int, Ge(1)] | None = None,
        vocab_size: Annotated[int, Ge(2), Le(MAX_DIMENSION)] = 512,
        max_positions: Annotated[int, Ge(2), Le(MAX_DIMENSION)] = 2048,
        tokenizer: str | None = None,
        parameters: Count | None = None,
        num_tokens: int | None = None,
    ):
        vocab_size = num_tokens or vocab_size
        self.family = family
        self.tokenizer_path = tokenizer

        def dimensions(hidden_size: int, intermediate_size: int) -> dict[str, Any]:
            heads = (num_layers, num_heads, num_kv_heads or num_heads)
            return _dimensions(family, hidden_size, intermediate_size, *heads, max_positions) | {
                "vocab_size": vocab_size
            }

        widths = {"hidden_size": hidden_size, "intermediate_size": 4 * hidden_size}
        if parameters is not None:

            def count(widths: Mapping[str, int]) -> int:
                return parameter_count({"model_type": self._model_type, **dimensions(**widths)})

            # The model's width goes by whole heads, four channels each at least; that of the MLP makes up for the rest.
            step, asked = 4 * num_heads, number_of(parameters)
            wider = smallest(lambda n: count({"hidden_size": n * step, "intermediate_size": 4 * n * step}) > asked)
            hidden_size = step * max(1, wider - 1)
            widths = of_size(
                count, lambda number: {"hidden_size": hidden_size, "intermediate_size": number}, parameters
            )
        self.dimensions = dimensions(**widths)

    def config(self) -> dict[str, Any]:
        return {"model_type": self._model_type, **self.dimensions}

    def identity(self) -> str:
        """The weights follow from the config and the seed."""
        return "" if self.tokenizer_path is None else folder_sha256(Path(self.tokenizer_path).expanduser())

    def tokenizer(self) -> Any:
        if self.tokenizer_path is None:
            return byte_tokenizer()
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(Path(self.tokenizer_path).expanduser())

    def model(self, dtype: Any) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM

        tokenizer = self.tokenizer()
        size = max(tokenizer.get_vocab().values()) + 1  # not their count, since ids may be left out between tokens
        if size > self.dimensions["vocab_size"]:
            raise UserError(
                f"model.vocab_size={self.dimensions['vocab_size']} is too small for the {size} tokens of "
                f"model.tokenizer={self.tokenizer_path}"
            )
        special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
        config = AutoConfig.for_model(self._model_type, **self.dimensions, **special)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # not the rotary frequencies, which stay fp32 as in a pretrained model
            parameter.data = parameter.data.to(dtype)
        model.config.dtype = dtype
        return model.eval()

    @property
    def _model_type(self) -> str:
        return "gemma3_text" if self.family == "gemma3" else self.family


def _dimensions(
    family: Family, hidden_size: int, mlp: int, num_layers: int, num_heads: int, num_kv_heads: int, max_positions: int
) -> dict[str, Any]:
    """The dimensions under the names that the config of a family has for them."""
    if family == "gpt2":
        return {
            "n_layer": num_layers,
            "n_embd": hidden_size,
            "n_head": num_heads,
            "n_inner": mlp,
            "n_positions": max_positions,
        }
    dimensions = {
        "num_hidden_layers": num_layers,
        "hidden_size": hidden_size,
        "num_attention_heads": num_heads,
        "intermediate_size": mlp,
        "max_position_embeddings": max_positions,
    }
    if family != "gpt_neox":
        dimensions["num_key_value_heads"] = num_kv_heads
    if family in ("qwen3", "gemma3"):
        dimensions["head_dim"] = hidden_size // num_heads
    if family in ("phi", "gpt_neox"):
        rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
        dimensions["rope_parameters"] = rope
    if family == "gemma3":  # every sixth layer sees all tokens, with slower codes; all others see a window
        kinds = {"sliding_attention": 10_000.0, "full_attention": 1_000_000.0}
        dimensions["layer_types"] = [list(kinds)[(layer + 1) % 6 == 0] for layer in range(num_layers)]
        dimensions["rope_parameters"] = {
            kind: {"rope_type": "default", "rope_theta": base} for kind, base in kinds.items()
        }
    return dimensions


def byte_tokenizer() -> Any:
    """A tokenizer whose first 256 tokens are the bytes and whose 257th ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)
