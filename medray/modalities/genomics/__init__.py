"""Genomics: DNA sequences (FASTA, FASTQ, GenBank, tables) as records or windows, and variants over a reference."""
