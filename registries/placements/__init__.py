"""LoRA placements: which linear layers get low-rank additions, and of what rank. One file per component.

A placement is a callable from a model and options to a table of `Row`s. It reads the model's config alone, so that the
table is known, and checked, before any weights are read.
"""
