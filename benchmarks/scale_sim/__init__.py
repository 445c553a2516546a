"""How far annotation scales: a simulation of 1 to 1,024 engines with measured service times.

In come service times of the real parts (`services`, measured by `parts` and `nodes`) and problems
(`work`); out go efficiencies, the part that saturates first, and a page (`page`). `state` and
`events` are what happens between two looks of the driver, `simulation` what the driver does at
each, by the program's own admission; `nodes` also holds it against real runs, whose engines are
`paced_engine`. `joining` has three clusters annotate one run in a bucket, and counts what is lost
or done twice. Nothing here is used by the program itself.
"""
