"""Irreducible representations of O(3) on dense tensors."""
