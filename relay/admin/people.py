"""Users and groups in unfold's clothes. Another project's own user admin is left alone.

Deleting either says what it means for consumers. What a group's consumers may do is on the group's page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import Model
from django.http import HttpRequest
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from relay.admin.consumers import GrantInline
from relay.admin.trails import TrailedAdmin

if TYPE_CHECKING:
    _UserAdmin = UserAdmin[User]
else:
    _UserAdmin = UserAdmin


class DressedUserAdmin(_UserAdmin, TrailedAdmin):
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    delete_confirmation_template = "relay/admin/people/delete_user.html"
    delete_selected_confirmation_template = "relay/admin/people/delete_users.html"

    class Media:
        css: ClassVar[dict[str, tuple[str, ...]]] = {"all": ("relay/admin.css",)}


class GroupGrantInline(GrantInline):
    fk_name = "group"
    verbose_name_plural = "What this group's consumers may do"


class DressedGroupAdmin(GroupAdmin, TrailedAdmin):
    inlines = (GroupGrantInline,)
    delete_confirmation_template = "relay/admin/people/delete_group.html"
    delete_selected_confirmation_template = "relay/admin/people/delete_groups.html"

    class Media:
        css: ClassVar[dict[str, tuple[str, ...]]] = {"all": ("relay/admin.css",)}

    def get_inlines(self, request: HttpRequest, obj: Group | None) -> Any:
        """A grant is checked to have its holder before it is saved: the group comes first."""
        return self.inlines if obj else ()


def _dress(model: type[Model], stock: type[admin.ModelAdmin[Any]], dressed: type[admin.ModelAdmin[Any]]) -> None:
    if admin.site.is_registered(model) and type(admin.site.get_model_admin(model)) is stock:
        admin.site.unregister(model)
        admin.site.register(model, dressed)


_dress(User, UserAdmin, DressedUserAdmin)
_dress(Group, GroupAdmin, DressedGroupAdmin)
