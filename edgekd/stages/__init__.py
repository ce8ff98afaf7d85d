"""Stages: `Name(settings)` is a frozen dataclass, called `stage(source, run, *, teacher=(), data=None) -> Made`; files go to `run.folder`.

`reads`: the splits whose samples decide the product (they are part of its key). `check(context) -> [Problem]`, where a stage has it, is
asked before any training. No stage knows a target; what a target wants arrives as plain fields. The folder is the list.
"""
