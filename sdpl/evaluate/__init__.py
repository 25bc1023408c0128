"""Scores against labels: metrics, thresholds, tables, the report. Needs no torch."""
