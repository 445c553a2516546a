"""The judge in use: search guided by its verdicts, training data picked by its scores.

In: a policy that writes chunks, a judge. Out: solutions with all that they cost (`chunk_reset`,
`beam_search`, `early_stop`, which write `drafts`), one answer of several (`voting`), samples of a
policy and how often they are right (`policy`), all of these beside the majority vote of equal cost
(`comparison`), picks among a problem's own solutions (`selection`).
"""
