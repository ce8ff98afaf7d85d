"""Stages: `Name(settings)` is a frozen dataclass, called `stage(source, run, *, teacher=(), data=None) -> Made`; files
go to `run.folder`.

`reads`: the splits that the result depends on (they are part of its key), a property if it depends on the settings.
`check(model, example, forward) -> [Problem]`, which is optional, is called before any training with the student's model
and untrained weights, two rows of inputs, and the task's `forward` (None: the model is called). No stage knows a
target: the settings that a target needs arrive as plain fields. The folder is the list.

A stage that always runs on the CPU says `cpu_only: ClassVar = True`; the others use `run.device`, which is then part of
their keys.

A field that names a part is annotated, `criterion: Annotated[Use, Part("criteria")] = Use("criteria", "magnitude")`,
and called like the part, `self.criterion(group)`; losses are `Annotated[tuple[Term, ...], Losses()]`."""

PLANNED = ("answer", "load", "given", "export")  # a plan makes these; a recipe's line names the others
