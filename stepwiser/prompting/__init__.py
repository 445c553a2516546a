"""Text to token ids and back: chunks, prompts, segmenters, verdicts.

In: problems, chunks, a model's tokenizer and chat template. Out: the ids a model reads
(`prompt_format`), the chunks in what it wrote (`chunks`), a response with chunk tags put in
(`segmentation`), the verdict in a judge's answer (`verdicts`). Below these lie the one place that
renders messages (`chat_template`), the one that turns ids of a response into text and back
(`token_text`), what of an answer is only thought (`thinking`), and what a generator is asked for
and gives back (`generation`). Prefixes are token-exact: the ids of a prefix are ids that the policy
wrote. Nothing here samples or scores.
"""
