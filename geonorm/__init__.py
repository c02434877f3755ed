"""Segmentation of aerial imagery with a free choice of normalization, and maps without seams."""

__version__ = "0.1.0"
