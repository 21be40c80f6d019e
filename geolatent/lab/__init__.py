"""The lab: what the commands do, from options to run folders and figures.

The room owns the experiments, their options, data, models at work, results and figures, and what
the command line reads and prints. It stands on top and may import everything; nothing but the
command line and `geolatent.data` leads into it. The modules that the command line needs before a
command begins (options, places, words, outlines, the terminal) load without torch. Arguments and
options are checked at the door, as in all of the package; docstrings list what else is raised.
"""
