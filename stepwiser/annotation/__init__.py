"""Monte-Carlo annotation: from a problem to valued and labelled chunks (paper section 3.2).

In: a problem, a generator, settings. Out: trajectories with (successes, trials) of every chunk
(`annotator`, `values`), when a prefix has had enough rollouts (`stopping`), labels (`label_rules`)
and judge prompts (`judge_prompts`). Beside these, arithmetic about the work: how many problems may
be in flight (`admission`), how fast it goes (`throughput`), what it will cost (`cost`), and the
means and errors that every room above reports (`statistics`). Files and actors do not belong here.
"""
