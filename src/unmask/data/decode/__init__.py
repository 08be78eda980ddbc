"""From encoded files to pixels: 8-bit pictures, rasters of any depth and number of bands, and resizing."""
