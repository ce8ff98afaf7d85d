"""Integer weights in blocks for linear layers: the table of blocks, the searches for it, and the check of the exported
file."""
