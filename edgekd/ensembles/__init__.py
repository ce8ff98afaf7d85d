"""Ensembles: `name(signals: {teacher: Signals}, batch, *, hyper=...)` -> Signals, one teacher made of several. The
folder is the list.

One that learns is an `nn.Module` class, built as `Name(names, classes, *, hyper=...)`; its `own` is a loss of its own,
added to the training's.
"""
