"""An evaluation as one HTML file: figures, pictures of what went wrong, tables."""
