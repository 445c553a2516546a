"""What the annotation engine is worth: speed, tokens, live, elastic, scale.

In: the packaged base model, or an engine that answers at once (`stub_engine`). Out: ratios and one
JSON line, by `python -m benchmarks.annotation`.
"""
