"""Proof, independent of the copier, that every object a row names is there and is the payload."""
