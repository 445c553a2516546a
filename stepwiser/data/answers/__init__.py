"""What an answer says, and when two say the same.

In: a response's text, two answers. Out: the answer in it (`boxes`), and True, False, or None for
"cannot say": by plain numbers (`numbers`, `unit_words`), by their texts (`equality`), by
mathematics (`symbolic`), or by a person's own verifier (`own_verifier`). What may loop or die runs
in one process under a deadline (`bounded`). Checkers, which remember and count, are
`data/verifiers`.
"""
