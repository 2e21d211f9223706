"""Language models, texts, and the activations recorded with both."""
