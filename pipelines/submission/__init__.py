"""Stages as jobs of a cluster that this machine only talks to.

In: a command with its settings, and the dashboard's address. Out: a job of Ray's Jobs API, its
lines, its end. `travel` says which files go along, `places` which settings would mean something
else over there, `job` what a job is called and run by; these three ask nobody. `jobs_api` is what
talks to the head. Nothing here needs PyTorch or vLLM, nor a Ray of this machine.
"""
