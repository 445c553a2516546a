"""Machines of one's own, made of network namespaces: `python -m tests.cluster.hosts.walk` drives
`ray up` with cluster/on-premises over them. Comes in: root's rights, sshd, rsync. Goes out: a line
of JSON with what happened. No test of other rooms belongs here.
"""
