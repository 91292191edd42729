"""Change something, see what follows."""
