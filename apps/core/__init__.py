"""What every app of the portal builds on: ids, records, errors, base API classes. No models of its own."""
