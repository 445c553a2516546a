"""Side-by-side measurements that print ratios: `python -m benchmarks.NAME`.

One module or folder a question: `learning` (is the judge any good?), `annotation` (what is the
engine worth?), `training` (what is the trainer worth?). Each has `--quick` for minutes and ends
with one JSON line of its figures; what came of them is in docs/results/. Nothing else imports
this package.
"""
