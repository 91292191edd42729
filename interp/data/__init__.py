"""What goes into a model, and what is asked of it."""
