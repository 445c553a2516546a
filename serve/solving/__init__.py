"""Solutions by chunk-reset: a policy writes, the served judge refuses.

In: a problem (`schema`). Out: every chunk that was tried with its verdict, then the solution and
what it cost. `replica` holds the policy's engine and searches there, so that only chunks to judge
travel; the search itself is `stepwiser.search`, which `stepwiser solve` measures.
"""
