"""model.ckpt to model.sdpl. Importing this package imports nothing: take what you need from its modules."""
