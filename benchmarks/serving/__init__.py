"""What the judge costs and holds as a service.

In: one judge, the packaged base model, behind `serve` and bare (`load`). Out: ratios and one JSON
line, by `python -m benchmarks.serving`; `faults` has clients that leave and replicas that are
killed, `soak` half an hour of too many clients.
"""
