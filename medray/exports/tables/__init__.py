"""The current scores of a store as tables for people who have no medray: CSV files, or the sheets of an Excel workbook."""
