"""Bilinear attention pooling: the operator that the whole head of the model folds into."""
