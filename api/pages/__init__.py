"""The pages that people see in a browser.

Invariant: a page is a client of the API. It asks `/v1` in this process, as the person who signed in, and can do nothing
that they could not do there.
"""
