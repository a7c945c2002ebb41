"""Users and groups in unfold's clothes. Another project's own user admin is left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import Model
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from relay.admin.trails import TrailedAdmin

if TYPE_CHECKING:
    _UserAdmin = UserAdmin[User]
else:
    _UserAdmin = UserAdmin


class DressedUserAdmin(_UserAdmin, TrailedAdmin):
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


class DressedGroupAdmin(GroupAdmin, TrailedAdmin):
    pass


def _dress(model: type[Model], stock: type[admin.ModelAdmin[Any]], dressed: type[admin.ModelAdmin[Any]]) -> None:
    if admin.site.is_registered(model) and type(admin.site.get_model_admin(model)) is stock:
        admin.site.unregister(model)
        admin.site.register(model, dressed)


_dress(User, UserAdmin, DressedUserAdmin)
_dress(Group, GroupAdmin, DressedGroupAdmin)
