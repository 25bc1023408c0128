"""The frozen tower's feature maps: computed image by image, or kept in a cache."""
