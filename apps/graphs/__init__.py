"""Provenance graphs: where a feature, a token or an attention score comes from, kept, named and commented."""
