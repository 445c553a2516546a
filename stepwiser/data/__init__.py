"""Data at the edges: rows, problems, final answers, solutions made elsewhere.

In: JSON lines, Parquet, the Hub, the embedded generator. Out: the frozen rows that the stages hand
each other, each with its Arrow schema (`records`), problems with reference answers that can be
verified (`sources`), verdicts on final answers (`verifiers`), and solutions to be valued that the
policy did not write (`imported`). Below the verdicts: what a response says (`answers`), plain
numbers (`numbers`), what text decides (`equality`) and mathematics does (`symbolic`), people's own
verifiers (`own_verifier`), and the process that bounds them (`bounded`). What leaves for other
libraries is in `run/export`.
"""
