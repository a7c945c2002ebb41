"""The admin's own door: who may come in, how often they may try, and how long they stay.

`lockout` throttles sign-in (django-axes keeps the counts), `sessions` ends what is old. Callers of relayed paths never
come this way.
"""
