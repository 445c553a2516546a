"""What one GPU is worth to every part of the program, in fifteen minutes, by one command.

In: a folder with a model, one with public data, and a number of seconds. Out: a table, JSON lines
and a page. Every part is a process of its own that is ended when its time is up (`processes`), and
measures with what the other benchmarks measure with. `--dry-run` does the same on a CPU with the
packaged model. Nothing here is needed to train or to serve.
"""
