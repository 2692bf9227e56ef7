"""Search spaces: blocks, genotypes, supernets and the operators that they are made of."""
