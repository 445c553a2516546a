"""Clusters and how the project gets onto them.

A folder a place: `ray up` files for three clouds and for machines of one's own, a script for Slurm,
a task for SkyPilot, KubeRay manifests. `iam` has the least rights that they need, `Dockerfile` the
image; `local_nodes` makes a cluster of several nodes on one machine, for tests and benchmarks. What
a run needs of a cluster is computed in `stepwiser/run/resource_plan`; where actors are placed is
decided in `actors/pool` and `actors/learner`.
"""
