"""Transfer syntaxes (PS3.5 section 10, PS3.6 annex A)."""

from __future__ import annotations

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
NATIVE = frozenset({IMPLICIT, EXPLICIT, BIG_ENDIAN})
"""Transfer syntaxes of uncompressed pixels; a deflated file is inflated before."""
COMPRESSED = ("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5")
"""Prefixes of transfer syntaxes of compressed pixels (PS3.6 annex A)."""
DEFLATED = "1.2.840.10008.1.2.1.99"
ELSEWHERE = frozenset({"1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.204"})
"""Transfer syntaxes of pixels that are kept on a server (JPIP)."""
