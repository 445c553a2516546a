"""The page that people look at, and what of the service only the page asks for.

In: nothing of a request but its path, and the directory of an annotated run (`labelled_run`). Out:
the files of `static` with the headers that keep scripts of others out (`files`), and solutions with
the values of their chunks. The page asks for verdicts and solutions as every other client does, by
the routes of `serve.ingress`; `static/katex` is a released KaTeX, not changed.
"""
