"""The kinds of edits of this program, one per module; :func:`~microscope.params.edit_kinds.edit_kinds` finds them."""
