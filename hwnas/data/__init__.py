"""Data sets as uint8 images in memory, split three ways, given out as pixels in [0, 1]."""
