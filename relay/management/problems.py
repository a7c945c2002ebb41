"""What is wrong with given values, in lines for a terminal."""

from __future__ import annotations

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError


def sentences(problem: ValidationError) -> list[str]:
    """One line for each thing that is wrong, with its field."""
    if not hasattr(problem, "error_dict"):
        return problem.messages
    return [
        message if field == NON_FIELD_ERRORS else f"{field}: {message}"
        for field, messages in problem.message_dict.items()
        for message in messages
    ]
