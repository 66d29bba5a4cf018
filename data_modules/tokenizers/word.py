"""Lower-cased words, the commonest of a text: what is rarer is one and the same unknown word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any

from annotated_types import Ge, Le

from data_modules import TOKENIZERS
from data_modules.tokens import UNKNOWN_BYTES

PADDING, UNKNOWN, START, END = SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


@TOKENIZERS.register("word")
def word(texts: Iterable[str], vocab_size: Annotated[int, Ge(5), Le(2**24)] = 1000) -> Any:
    """The commonest words between white space, in lower case, and four special tokens.

    Neither case nor white space comes back, nor an unknown word: perplexities of such tokens compare with no others.

    Args:
        texts: whose words are counted; of equally common ones, the first in the alphabet come first.
        vocab_size: tokens, the special ones included.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    counts = Counter(piece for text in texts for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    for token in SPECIAL:  # a text that writes one out has written an unknown word
        counts.pop(token, None)
    common = sorted(counts, key=lambda piece: (-counts[piece], piece))[: vocab_size - len(SPECIAL)]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *common])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    rare = Counter({piece: count for piece, count in counts.items() if piece not in vocabulary})
    length = sum(len(piece.encode()) * count for piece, count in rare.items()) / max(1, rare.total())
    special = {"pad_token": PADDING, "unk_token": UNKNOWN, "bos_token": START, "eos_token": END}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **{UNKNOWN_BYTES: length})
