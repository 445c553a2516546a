"""The judge in use: search guided by its verdicts, training data picked by its scores.

In: a policy that writes chunks, a judge. Out: solutions with all that they cost (`chunk_reset`,
with majority vote and best-of-N at equal cost), samples of a policy and how often they are right
(`policy`), picks among a problem's own solutions (`selection`).
"""
