"""The admin's own door: who may come in, how often they may try, and how long they stay.

`lockout` throttles sign-in (django-axes keeps the counts), `sessions` ends what is old, `factors` asks for a second
factor where `RELAY_ADMIN_MFA` is on (django-otp keeps the devices). Callers of relayed paths never come this way.
"""
