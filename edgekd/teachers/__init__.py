"""Teachers: `name(...)` returns a callable `(batch) -> Signals`, without gradient. `live` runs the model, `cached`
reads its saved logits."""
