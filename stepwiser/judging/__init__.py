"""Judges, and what several of their verdicts say together.

In: a problem, the chunks before, a chunk. Out: a verdict with its score and analysis: of a model
that writes (`judges`), one behind an endpoint (`endpoint`), or a public step scorer
(`scoring_judge`, over what `step_prompts` has it read and `step_models` computes). Majority and
score of several are in `votes`. Reading one answer is `prompting/verdicts`, training is
`training/`, scoring judges is `evaluation/`.
"""
