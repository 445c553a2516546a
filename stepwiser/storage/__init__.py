"""Files of a run wherever they lie: a folder of this machine, or a bucket of an object store.

In: a name with slashes and the bytes of the whole file. Out: the bytes, whole, and lists of names.
`interface` says what both kinds of place can do, `folder` and `objects` do it, `places` tells an
address from a path, `failures` turns what a store answers into words. Of whole files are made logs
that several processes add to (`lines`), folders that are replaced whole (`trees`), and work that
one of several owners does at a time (`lease`). What a run consists of is not known here.
"""
