"""Labelled images: label files, masks, categories, checks, augmented views. Needs no torch."""
