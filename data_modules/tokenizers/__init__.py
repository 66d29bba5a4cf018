"""Tokenizers that are trained on the training split."""
