"""Judging in a replica: the engine it holds, the service around it, scores out of verdicts.

In: a `serve.schema.Solution` or a conversation. Out: a response, events of one that is under way,
or a `Failure` (`replica`, with `service` as what it is made of); one number out of step scores
(`scores`). HTTP, keys and queues do not belong here.
"""
