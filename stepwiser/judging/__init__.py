"""Judges over any generator, and what several of their verdicts say together.

In: a problem, the chunks before, a chunk. Out: a verdict with its score and analysis (`judges`);
majority and score of several (`votes`). Reading one answer is `prompting/verdicts`, training is
`training/`, scoring is `evaluation/`.
"""
