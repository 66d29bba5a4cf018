"""Models. A component builds a *model loader*, which gives config, tokenizer and model separately.

A config is checked before anything else is read, and data are tokenised before any weights are.
"""
