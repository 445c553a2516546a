"""What a person runs: stages, the session they share, and the command line.

Rooms, from the bottom: `monitoring`, `session`, then what stages have in common (`annotation`,
`training`, `evaluation`), `stages` (one file a stage) and `cli`. A stage composes `stepwiser/` and
`actors/`; whatever could be computed without a session belongs there.
"""
