"""Actors that score steps with a public scorer: a loaded model each, asked in groups of solutions.

In: problems with the steps of their solutions. Out: a score of every step. `scorers` holds the
actors and the pool that shares work among them; what a model reads and computes is in
`stepwiser/judging`. Models that generate text are in `engine` and `pool`.
"""
