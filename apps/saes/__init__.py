"""Sparse autoencoders and how good they are."""
