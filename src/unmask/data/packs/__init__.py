"""Packs: the images of any source copied into a few large tars. `unmask.data.sources.pack` reads them."""
