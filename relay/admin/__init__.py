"""What admins see and do, on django-unfold. Rules about what may be saved are the models'; nothing here adds to them.

`upstreams` is the changelist and the form, `forms` its widgets and labels, `examples` the lines and programs to copy;
`consumers` and `keys` are who may call, `key_forms` what is asked when a key is made, `callers` the grants as pages
show them, `signing` signing keys and the URLs they sign; `switching` the bulk switches, `index` the numbers of the
start page, `documentation` the pages of docs/, `people` users and groups, `audit` the audit trail, `trails` the way to
it, `authorship` the middleware that names it who is at work.
"""

from __future__ import annotations

from relay.admin import audit, consumers, keys, people, signing, upstreams

__all__ = ["audit", "consumers", "keys", "people", "signing", "upstreams"]
