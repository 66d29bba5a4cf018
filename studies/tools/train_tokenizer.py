"""Train a byte-level BPE tokenizer on the training documents of a text dataset.

python -m studies.tools.train_tokenizer pydoc 2048 outputs/tiny_phi_tokenizer
"""

from __future__ import annotations

if __name__ == "__main__":
    import argparse

    from data_modules import DATASETS, TOKENIZERS
    from data_modules.trained_tokenizer import training_texts

    parser = argparse.ArgumentParser(prog="python -m studies.tools.train_tokenizer")
    parser.add_argument("dataset", choices=DATASETS.names())
    parser.add_argument("vocab_size", type=int)
    parser.add_argument("folder")
    arguments = parser.parse_args()
    texts = training_texts(DATASETS.build(arguments.dataset))
    tokenizer = TOKENIZERS.build("byte_bpe", texts=texts, vocab_size=arguments.vocab_size)
    tokenizer.save_pretrained(arguments.folder)
    print(f"{arguments.vocab_size} tokens, trained on {len(texts)} texts: {arguments.folder}")
