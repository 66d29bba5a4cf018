"""Where models come from. A component is a *model loader*: it gives config, tokenizer and model, each by itself.

Data are tokenised before any weights are read, and a config is checked before anything is, so that the three are
separate and each costs only itself.
"""
