"""The write side: what happens in the pool becomes a Go execution trace."""
