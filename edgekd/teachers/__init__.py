"""Teachers: `name(...)` makes a callable `(batch) -> Signals`, without gradient. `live` runs the model, `cached` reads
its logits."""
