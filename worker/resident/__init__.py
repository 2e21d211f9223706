"""The process that holds one model and answers over a socket. Knows torch, not Django."""
