"""Long work: what is to be done, who is doing it, how far it is. Knows no kind of job itself."""
