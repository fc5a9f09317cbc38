"""What a model is: its native sites by recorded runs, and its standard sites by structure and by numbers."""

from glassworks.model.anatomy import build_table, build_table_fake
from glassworks.model.identity import check_identities, unembed_is_plain
from glassworks.model.scan import scan, scan_fake

__all__ = ["build_table", "build_table_fake", "check_identities", "scan", "scan_fake", "unembed_is_plain"]
