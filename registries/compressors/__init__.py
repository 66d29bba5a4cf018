"""Encoders that turn the hidden states of a text into a few soft tokens for another model."""
