"""HTML pages of one file each: an evaluation, a training run, checked data; figures, pictures, tables."""
