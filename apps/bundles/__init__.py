"""Whole projects as one file: out of one instance, into another."""
