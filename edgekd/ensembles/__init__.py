"""Ensembles: `name(signals: {teacher: Signals}, batch, *, hyper=...)` -> Signals, one teacher made of several. The
folder is the list.

An ensemble that learns is an `nn.Module` class, built as `Name(names, classes, *, hyper=...)`; its attribute `own` is a
loss that is added to the training's.
"""
