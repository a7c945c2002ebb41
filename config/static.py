"""Where static files' names come from: hashed ones once collected, their plain ones before."""

from __future__ import annotations

from whitenoise.storage import CompressedManifestStaticFilesStorage


class CollectedStaticFiles(CompressedManifestStaticFilesStorage):
    """The manifest storage refuses to render a page before `collectstatic` ran; the admin is to work then too."""

    manifest_strict = False

    def stored_name(self, name: str) -> str:
        if not self.hashed_files:
            return name
        try:
            return str(super().stored_name(name))
        except ValueError:  # newer than the last `collectstatic`: a page without one picture beats no page
            return name
