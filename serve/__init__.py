"""The judge over HTTP: a Ray Serve application of an ingress and of replicas that hold engines.

In: requests as `schema` and `protocols` describe them. Out: verdicts, scores, analyses, or an error
of the one shape (`errors`) that names the field. A request passes `access` (key, size, queue),
`ingress` (routes), `work` (limits, deadline) and `dispatch` (a replica, or another one when that is
lost); the replica's side is `judging`. `app` puts them together and runs them; `page` is what
people look at. Training never goes through here.
"""
