"""Stages: `Name(settings)` is a frozen dataclass, called `stage(source, run, *, teacher=(), data=None) -> Made`; files
go to `run.folder`.

`reads`: the splits whose samples decide the product (they are part of its key), a property where the settings decide
which. `check(model, example, forward) -> [Problem]`, where a stage has it, is asked before any training: the student's
model with fresh weights, two rows of inputs, and the task's `forward` (None: the model is called). No stage knows a
target; what a target wants arrives as plain fields. The folder is the list.

A field that names a part says so, `criterion: Annotated[Use, Part("criteria")] = Use("criteria", "magnitude")`, and is
called like the part, `self.criterion(group)`; losses are `Annotated[tuple[Term, ...], Losses()]`.
"""

PLANNED = ("answer", "load", "export")  # a plan makes these; a recipe's line names the others
