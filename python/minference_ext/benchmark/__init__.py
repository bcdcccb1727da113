"""How times are taken, what they were taken on, and inputs that have the lines of real prompts."""

from __future__ import annotations
