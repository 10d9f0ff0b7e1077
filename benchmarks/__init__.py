"""Measurements that the README quotes, and the scripts that make them."""
