"""StepWiser's method: training generative judges of reasoning steps (arXiv 2508.19229).

What a paper would define, as plain Python and PyTorch: no Ray, vLLM or DeepSpeed. Whatever has to
be generated is asked of a `generation.Generator`; `actors/` has the one that is vLLM. Rooms import
each other in the order of pyproject.toml ([tool.importlinter]) and modules by their full names, so
that importing one room loads nothing of another that it does not use.
"""

__version__ = "0.1.0"
