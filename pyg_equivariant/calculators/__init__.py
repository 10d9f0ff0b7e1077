"""Simulation engines that a trained potential drives."""
