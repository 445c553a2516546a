"""Files of a run wherever they lie: a folder of this machine, or a bucket of an object store.

In: a name with slashes and the bytes of the whole file. Out: the bytes, whole, and lists of names.
`interface` says what both kinds of place can do, `folder` and `objects` do it, `places` tells an
address from a path, `failures` turns what a store answers into words, `lease` gives one of several
writers a name for a while. No file grows and none is renamed: a file appears whole, at once or not
at all, which object stores hold too. What a run consists of is not known here.
"""
