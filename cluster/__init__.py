"""Clusters and how the project gets onto them.

`ray up` YAML files, KubeRay manifests, the image; `local_nodes` makes a cluster of several nodes on
one machine, for tests and benchmarks. What a run needs of a cluster is computed in
`stepwiser/run/resource_plan`; where actors are placed is decided in `actors/pool` and
`actors/learner`.
"""
