"""Text as people have it: plain text, JSON and JSON Lines, CSV, Parquet and Arrow, read as a stream of documents.

No torch. Memory is bounded whatever the file, the time is linear in its size, and whatever cannot be
read is refused with the file, the line and what to do. Importing a corpus and recording from one read
through the same class, so that what the one takes the other takes.
"""

from microscope.texts.files import TextFile
from microscope.texts.folders import text_files

__all__ = ["TextFile", "text_files"]
