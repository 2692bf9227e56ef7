"""Spaces that search kernel, expansion, squeeze-and-excitation, width and depth."""
