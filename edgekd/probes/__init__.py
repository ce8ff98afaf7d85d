"""Probes make measurements: (results of a job | file, references, target) -> measurements. One file per kind of thing
that is looked at.

`static` and `memory` count on the file alone; `quality` compares outputs per sample.
"""
