"""Look without changing: what each layer predicts already (`logits`, `curves`, `tuned`), and which parts of the model a
logit is made of (`attribution`)."""
