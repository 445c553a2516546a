"""Long-lived Ray actors: whatever holds a GPU, an engine or state between calls.

Rooms, from the bottom: `weight_sync` (weights from learner to engines), `engine` (one vLLM
engine), `pool` (many engines behind one `generate`), `scoring` (models that score steps instead of
writing), `rollout` (what asks engines: labeler, collector, evaluator), `learner` (DeepSpeed under
Ray Train). What they compute is in `stepwiser/`; which of them a stage starts is decided in
`pipelines/`. Ray, vLLM and DeepSpeed are imported where they are used.
"""
