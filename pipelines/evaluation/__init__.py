"""Evaluation around the judges: who is scored, on what, and what was said before.

In: a session. Out: the judges of a run and from elsewhere (`judge_specs`), the solutions they are
scored on (`items`), judgements that are asked once (`judgements`, `answers_file`), checks of trust
and their tables, all judges against all sets (`benchmark_table`), problems solved with a judge
(`solving`), and the evaluator beside a training (`inline_evaluation`). The scores are computed in
`stepwiser/evaluation`, searches are those of `stepwiser/search`.
"""
