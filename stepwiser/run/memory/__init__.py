"""What a run needs of a machine's memory, before anything is started, and what took too much of it.

In come a configuration and the folders of its models; out come bytes by process and by node, what
is short, and settings with which nothing is. Nothing here starts or measures a process of a run:
figures that no file tells are constants, each with the versions that it was measured with.
`layout` does the same for cards of machines that are not there (`machines`), and says what fits.
"""
