"""The built-in tasks: each a function of model, number of prompts and a random generator that gives a Task.

Answers are single tokens of the model at hand; words that are not are left out, and counted (`interp.data.wording`).
Clean and corrupted prompts have the same number of tokens: what stands in one place in both means the same.
"""
