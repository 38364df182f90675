"""Alerts: what tells a person that a night needs them, and how it is sent. What deserves one: `medray/verbs/alerts.py`."""
