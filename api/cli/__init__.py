"""The command line, `conversas`: each command puts its adapters together, runs, and says what it did.

Invariant: a mistake of the person who types ends with one sentence that says what to do, never with a traceback.
"""
