"""One file for each role of a run: the worker that its actors host, the door to them, and how both are made.

Actors import these files as well, so nothing is imported here, and nothing heavy by a file that does not need it there.
"""
