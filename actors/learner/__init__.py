"""The learner: DeepSpeed ranks under Ray Train, for GRPO and supervised fine-tuning.

In: batches from the collector, or files of token examples. Out: published weights, checkpoints,
plain safetensors exports, lines of `metrics.jsonl`. `train` and `sft` are what a driver calls,
`worker_group` is the one shape of a Ray Train run, `deepspeed_worker` one rank, `grpo_loop` its
loop. The loss itself is `stepwiser/training/grpo`.
"""
