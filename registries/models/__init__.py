"""Where models come from. A component is a *source*: it knows the config, the tokenizer and the model apart.

Data are tokenised before any weights are read, and a config is checked before anything is, so that the three are
separate and each costs only itself.
"""
