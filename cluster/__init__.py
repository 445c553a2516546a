"""Clusters and how the project gets onto them: files, not code.

`ray up` YAML files, KubeRay manifests, the image. What a run needs of a cluster is computed in
`stepwiser/run/resource_plan`; where actors are placed is decided in `actors/pool` and
`actors/learner`.
"""
