"""StepWiser: training generative judges of reasoning steps (arXiv 2508.19229), without Ray."""

__version__ = "0.1.0"
