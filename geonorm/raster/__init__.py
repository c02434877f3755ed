"""Windows of raster files: in and out."""
