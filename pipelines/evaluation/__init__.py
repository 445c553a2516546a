"""Evaluation around the judges: who is scored, on what, and what was said before.

In: a session. Out: the judges of a run (`judge_specs`), the solutions they are scored on (`items`),
judgements that are asked once (`judgements`), checks of trust and their tables, and the evaluator
beside a training (`inline_evaluation`). The scores are computed in `stepwiser/evaluation`.
"""
