"""Cross-model adapters: what a component is, and the map that the closed forms among them find.

An adapter turns hidden states of one model, the source, into those of another, the target. What it takes from the data
before any training is its `fit`; what is left to be trained are its parameters, if it has any.
"""
