"""Dendrograms: how they are built, cut and compared, and the hierarchies of classes."""
