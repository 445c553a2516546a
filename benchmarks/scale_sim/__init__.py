"""How far annotation scales, and what clusters that join one run are worth.

`joining` has three clusters annotate one run in a bucket, and counts what is lost or done twice.
Nothing here is used by the program itself.
"""
