"""Cross-model adapters: maps from hidden states of one model, the source, to those of another, the target.

`fit` takes from the data what needs no training; the parameters of an adapter, if it has any, are trained afterwards.
"""
