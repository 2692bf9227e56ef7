"""DARTS cells: two cells are searched, each a small graph, and repeated to make a network."""
