"""Look without changing: what each layer predicts already (`logits`, `curves`, `tuned`), which parts of the model a
logit is made of (`attribution`), what heads attend to and what their weights do (`heads`, `weights`)."""
