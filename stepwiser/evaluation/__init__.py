"""How good a judge is, and whether it can be trusted (paper section 4).

In: items with known labels and what a judge said of them. Out: ProcessBench scores by both
protocols, calibration, agreement of votes, faithfulness of the analysis to the step, overlap of
evaluation and training problems; scores of all steps (`step_scores`), thresholds, and judges
against benchmarks with their intervals (`benchmarks`, `bootstrap`). `scoring` puts one judge's
figures together. Who is judged, and by which engines, is decided in `pipelines/evaluation`.
"""
