"""What Django's error pages and error mails may show: nothing that was typed into a page for secrets.

Set as `DEFAULT_EXCEPTION_REPORTER_FILTER`. Django's own filter does nothing under DEBUG and hides the variables of
marked functions alone, while a form's value also stands in the frames of Django that handled it. Where a view is marked
with `sensitive_post_parameters()`, no frame's variables are shown at all.
"""

from __future__ import annotations

import re
from types import FrameType
from typing import Any

from django.http import HttpRequest
from django.views.debug import SafeExceptionReporterFilter

EVERYTHING = "__ALL__"
"""What Django notes at a request whose view was marked without names."""


class SecretsHidden(SafeExceptionReporterFilter):
    hidden_settings = re.compile(SafeExceptionReporterFilter.hidden_settings.pattern + "|CREDENTIAL|DATABASE", re.I)

    def is_active(self, request: HttpRequest | None) -> bool:
        return True

    def get_traceback_frame_variables(self, request: HttpRequest | None, tb_frame: FrameType) -> Any:
        if getattr(request, "sensitive_post_parameters", None) == EVERYTHING:
            return [(name, self.cleansed_substitute) for name in tb_frame.f_locals]
        return super().get_traceback_frame_variables(request, tb_frame)
