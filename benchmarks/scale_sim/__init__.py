"""How far annotation scales: a simulation of 1 to 1,024 engines with measured service times.

In come service times of the real parts (`services`, `annotated`) and problems to annotate (`work`);
out go efficiencies, the part that saturates first, and `docs/scale.md` (`page`). `events` is what
happens between two looks of the driver, `simulation` what the driver does at each, by the program's
own admission, and `nodes` holds both against real runs. Nothing here is used by the program itself.
"""
