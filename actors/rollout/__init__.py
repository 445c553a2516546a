"""What asks the engines: labelers, the experience collector, the evaluator.

In: problems, judge prompts, items, and a pool's client. Out: units on disk (`labeler`), batches of
scored judgements for the learner (`collector`, whose prompts come from `prompt_source`), scores of
a judge while it trains (`evaluator`). The arithmetic is in `stepwiser/`; nothing here holds a GPU.
"""
