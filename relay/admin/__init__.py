"""What admins see and do, on django-unfold. Rules about what may be saved are the models'; nothing here adds to them.

`upstreams` is the changelist and the form, `forms` its widgets and labels, `examples` the curl lines, `index` the
numbers of the start page, `documentation` the pages of docs/, `people` users and groups.
"""

from __future__ import annotations

from relay.admin import people, upstreams

__all__ = ["people", "upstreams"]
