"""The package of docs/extending.md, installed from the page's own code: what it adds works everywhere."""
