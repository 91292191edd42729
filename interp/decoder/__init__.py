"""The model, instrumented."""
