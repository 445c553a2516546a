"""What the trainer is worth, a module a part: beside TRL, overlap, memory.

In: labelled prompts of the embedded task. Out: ratios and one JSON line, by
`python -m benchmarks.training`; `trl_arm` is TRL's side of the comparison, in processes of its own.
"""
