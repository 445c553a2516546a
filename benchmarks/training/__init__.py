"""What the trainer is worth, a module a part: beside TRL and plain PyTorch, overlap, memory.

In: labelled prompts of the embedded task, or random tokens. Out: ratios and one JSON line, by
`python -m benchmarks.training`; `trl_arm` and `torch_arm` are the sides of a comparison that run in
processes of their own.
"""
