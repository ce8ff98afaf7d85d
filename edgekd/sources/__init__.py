"""Where batches come from: `columns` (a split as arrays), `epochs` (order, views and augmentation as pure functions of seed)."""
