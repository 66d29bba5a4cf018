"""Lower-cased words, the commonest of a text: what is rarer is one and the same unknown word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any

from annotated_types import Ge, Le

from data_modules import TOKENIZERS
from data_modules.tokenizers.tokenizer_trainer import special_token_errors
from data_modules.tokens import UNKNOWN_BYTES

PADDING, UNKNOWN, START, END = SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


def _check(special_tokens: list[str] | None, vocab_size: int) -> list[str]:
    errors = special_token_errors(special_tokens, SPECIAL)
    if not errors and len(SPECIAL) + len(special_tokens or []) >= vocab_size:
        errors.append(f"tokenizer.vocab_size={vocab_size} has no room for words beside the special tokens: raise it")
    return errors


@TOKENIZERS.register("word", check=_check)
def word(
    texts: Iterable[str],
    vocab_size: Annotated[int, Ge(5), Le(2**24)] = 1000,
    special_tokens: list[str] | None = None,
) -> Any:
    """The commonest words between white space, in lower case, and four special tokens.

    Neither case nor white space comes back, nor an unknown word: perplexities of such tokens compare with no others.

    Args:
        texts: whose words are counted; of equally common ones, the first in the alphabet come first.
        vocab_size: tokens, the special ones included.
        special_tokens: texts that are one token each, such as the markers of who speaks, beside the four.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    counts = Counter(piece for text in texts for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    every_special = [*SPECIAL, *(special_tokens or [])]
    for token in every_special:  # a text that writes one out has written an unknown word
        counts.pop(token, None)
    common = sorted(counts, key=lambda piece: (-counts[piece], piece))[: vocab_size - len(every_special)]
    vocabulary = {token: index for index, token in enumerate([*every_special, *common])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    # A special token that a text writes out is a word like any other that is not in the vocabulary.
    written_out = [normalizers.Replace(token, UNKNOWN) for token in every_special if token != UNKNOWN]
    tokenizer.normalizer = normalizers.Sequence([normalizer, *written_out])
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens(list(special_tokens or []))
    rare = Counter({piece: count for piece, count in counts.items() if piece not in vocabulary})
    length = sum(len(piece.encode()) * count for piece, count in rare.items()) / max(1, rare.total())
    special = {"pad_token": PADDING, "unk_token": UNKNOWN, "bos_token": START, "eos_token": END}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **{UNKNOWN_BYTES: length})
