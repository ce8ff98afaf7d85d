"""Training: one loop (`loop.fit`), and the values that it is given: loss terms, supervision by teachers, taps on inner
layers, checkpoints."""
