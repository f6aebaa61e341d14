"""Learners: the FLARE side of training at one site."""

from src.site_imports import import_monai

import_monai("ignite")  # the learners bring their own loop
