"""Bilinear attention pooling: the operator that the whole head of the model folds into."""

EPS = 1e-6  # the smallest length an embedding is divided by
