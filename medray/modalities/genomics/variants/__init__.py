"""Variants: alleles over a reference, their records, their encoding."""
