"""What the features of an SAE do: numbers to sort by, text to search, examples to read, labels people give."""
