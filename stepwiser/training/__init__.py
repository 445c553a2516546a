"""What a learner computes and reads, without the machine it runs on (paper section 3.3).

In: judged samples and labels. Out: rewards, advantages, the GRPO loss (`grpo`) of log-probs
(`vocabulary`), the batches that carry them (`experience`, `packing`), which step may be sampled
when (`staleness`, `prompt_buffer`), the examples that rejection sampling keeps, the learning rate
of a step, the arms of an ablation.
DeepSpeed, Ray Train and engines are in `actors/learner` and `actors/rollout`.
"""
