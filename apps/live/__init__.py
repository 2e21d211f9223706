"""What happens while somebody watches: WebSockets, and the way to the process that holds a model."""
