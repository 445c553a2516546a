"""The stages: one file each, called like its command, with one function `run(session)`.

In: what earlier stages left in the run directory. Out: rows, models and `metrics/<stage>.json`,
each written once, so that a second start goes on. `runner` runs several, `summary` is the table
that the quickstart ends with. What several stages need is in the rooms below.
"""
