"""Engines that come and go behind one `generate`.

In: requests of any process (`client`). Out: answers of weights that are new enough, whatever
engine died meanwhile. `generator` is one engine in one actor, `supervisor` starts and ends them as
`scaling` decides, `registry` is how clients and engines learn of each other, `routing` picks an
engine, `quarantine` isolates requests that end engines. What is asked is no business of this room.
"""
