"""Training in PyTorch. Importing this package imports nothing: take what you need from its modules."""
