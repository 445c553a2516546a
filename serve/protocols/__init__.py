"""Shapes that other programs speak: OpenAI's chat completions, and rewards for trainers.

In: a body in the shape of another library (`chat`, `pooling`, `rewards`). Out: solutions to judge
(`serve.schema.Solution`), and the judge's answers in that library's shape. Nothing here judges,
waits or knows a route.
"""
