"""Training around the learner: options from the configuration, and the baselines.

In: a session and labelled prompts. Out: worker groups and options (`learner_options`), judges that
the RL judge is compared with (`baselines`). The RL judge itself is the stage `train`.
"""
