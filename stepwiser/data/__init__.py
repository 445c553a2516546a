"""Data at the edges: rows, problems, final answers, solutions made elsewhere.

In: JSON lines, JSON, CSV, Parquet (`files`), the Hub, known sets by name (`presets`), the embedded
generator. Out: the frozen rows that the stages hand each other, each with its Arrow schema
(`records`), problems with reference answers that can be verified (`sources`), verdicts on final
answers (`verifiers`, over the room `answers`), solutions to be valued that the policy did not write
(`imported`), those with labelled steps that judges are scored on (`step_items`, in the formats of
`step_formats` and `prmbench`), and any that are to be judged (`solutions`). A cell is read by what
it says (`cells`), and a row that cannot be read is named. What leaves for other libraries is in
`run/export`.
"""
