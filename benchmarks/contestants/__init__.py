"""Builders of contestants: each gives a function that measures one round."""
