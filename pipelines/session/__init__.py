"""One start of the program: Ray, the engines, the run directory.

In: a configuration. Out: a `Session`, which checks the plan against the cluster, starts or joins
Ray, hands out engine pools and closes all of it whatever happens. What a stage does with them is
not decided here.
"""
