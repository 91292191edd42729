"""Look without changing: what layers already predict, what heads attend to, what their weights do."""
