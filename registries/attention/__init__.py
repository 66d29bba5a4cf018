"""Attention replacements. One file per component; a component is a *core*, hosted in the model's own attention layer.

The host (`lightning_modules/surgery/attention_host.py`) leaves projections, biases, position codes, query/key norms,
grouped heads, padding and the KV cache to the model's own code, and calls the core for what lies between them.
"""
