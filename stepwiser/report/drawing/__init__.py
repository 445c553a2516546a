"""What a page draws: plots as SVG (`charts`), and figures and bars made of them (`figures`).

In: numbers with their titles. Out: markup. What a section says of a run does not belong here.
"""
