"""Loss terms: `name(student: Signals, teacher: Signals | None, batch, *, hyper=...)` -> unreduced [B] (or [] where rows
don't separate).

The one loop applies sample weights and the term's `weight`, and divides once; a term that gives [] applies the sample
weights itself. A term whose `teacher` is not optional needs one: a recipe that gives it none is refused before
training. A term raises UsageError for inputs that it can't take (`_takes`); a term without a gradient on random outputs
is refused before training (`trials`). The folder is the list.

One that learns is an `nn.Module` class, built as `Name(student, teacher, batch, *, hyper=...)` from the signals of a
dry run and called with the same three; its `changing` names the settings, kept as attributes, that a schedule may
change.
"""
